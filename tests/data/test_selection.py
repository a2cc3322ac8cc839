"""Subsets of a data set: some classes, few training examples."""

import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Selection
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.models import MLP

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 6, 300)
IMAGES = RNG.normal(size=(300, 4)) + 10 * LABELS[:, None]
WHOLE = Arrays({"train": {"image": IMAGES, "label": LABELS}}, test_fraction=0.3)


def arrays(data):
    return {name: [source[i] for i in range(len(source))] for name, source in data.splits().items()}


def test_only_the_chosen_classes_remain_numbered_anew_in_the_set_s_own_splits():
    chosen = (5, 1, 2)
    found, whole = arrays(Selection(WHOLE, classes=chosen)), arrays(WHOLE)
    assert found.keys() == whole.keys()
    for name, examples in found.items():
        expected = [example for example in whole[name] if example["label"] in chosen]
        assert [chosen[x["label"]] for x in examples] == [x["label"] for x in expected]
        np.testing.assert_array_equal(
            [x["image"] for x in examples], [x["image"] for x in expected]
        )


def test_few_training_examples_each_class_alike_and_the_others_whole():
    all_of_them = arrays(Selection(WHOLE, classes=(0, 3)))
    few = Selection(WHOLE, classes=(0, 3), num_examples=20)
    found = arrays(few)
    assert np.bincount([x["label"] for x in found["train"]]).tolist() == [10, 10]
    assert len(found["test"]) == len(all_of_them["test"])
    known = {x["image"].tobytes() for x in all_of_them["train"]}
    assert {x["image"].tobytes() for x in found["train"]} <= known
    again = arrays(few)
    other = arrays(Selection(WHOLE, classes=(0, 3), num_examples=20, split_seed=1))
    first, second, third = (
        [x["image"][0] for x in part["train"]] for part in (found, again, other)
    )
    assert first == second != third


@pytest.mark.parametrize("examples", [21, 1000, 0])
def test_examples_that_cannot_be_shared_out(examples):
    with pytest.raises(UserError, match="not the same number for each of 2 classes"):
        Selection(WHOLE, classes=(0, 3), num_examples=examples).splits()


def test_a_selection_is_trained_on(tmp_path):
    data = Selection(WHOLE, classes=(4, 0), num_examples=40)
    assert Splits(data).fingerprints()["train"]["count"] == 40
    experiment = jdl.Experiment(model=MLP(features=2), data=data, epochs=10, batch_size=8)
    assert jdl.train(experiment, tmp_path / "run").result["metrics"]["test"]["accuracy"] == 1


def test_the_test_split_has_classes_that_training_has_not():
    data = Selection(WHOLE, classes=(0, 3), test_classes=(5, 3, 1))
    found, whole = arrays(data), arrays(WHOLE)
    assert {x["label"].item() for x in found["train"]} == {0, 1}
    assert {x["label"].item() for x in found["validation"]} == {0, 1}
    kept = [x for x in whole["test"] if x["label"] in (5, 3, 1)]
    assert [(0, 3, 5, 1)[x["label"]] for x in found["test"]] == [x["label"] for x in kept]
    for changes, message in (
        ({"classes": (0, 0)}, "data.classes holds 0 twice"),
        (
            {"classes": (0,), "test_classes": (7,)},
            "has no example of the classes 7",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Selection(WHOLE, **changes).splits()
