"""Held-out splits: sizes, members, and fingerprints that distinguish data sets."""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from jdl.config.overrides import flatten
from jdl.data import Arrays, Digits, Source
from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.splits import Splits
from jdl.errors import UserError


def numbered(count, begin=0):
    """Examples whose label is their number."""
    numbers = np.arange(begin, begin + count)
    return {"image": numbers[:, None] / 2, "label": numbers}


def members(data):
    return {
        name: [int(source[i]["label"]) for i in range(len(source))]
        for name, source in data.splits().items()
    }


def sizes(data):
    return {name: len(source) for name, source in data.splits().items()}


def fingerprints(data):
    return Splits(data).fingerprints()


def test_a_fifth_is_held_out_for_the_test_and_a_tenth_of_the_rest_for_validation():
    assert sizes(Arrays({"train": numbered(100)})) == {"train": 72, "test": 20, "validation": 8}
    assert sizes(Digits()) == {"train": 1294, "test": 359, "validation": 144}  # of 1,797


def test_splits_are_disjoint_and_complete():
    found = members(Arrays({"train": numbered(103)}))
    assert sorted(itertools.chain(*found.values())) == list(range(103))
    assert all(len(part) == len(set(part)) for part in found.values())


def test_a_split_has_the_same_members_each_time_and_others_for_another_split_seed():
    arrays = {"train": numbered(100)}
    first = members(Arrays(arrays))
    assert members(Arrays(arrays)) == first
    other = members(Arrays(arrays, split_seed=1))
    for name in ("test", "validation"):
        assert len(other[name]) == len(first[name])
        assert other[name] != first[name]


def test_held_out_members_come_from_everywhere():
    held_out = np.array(members(Arrays({"train": numbered(10_000)}))["test"])
    # Of 2,000 random members of each tenth 200 are expected, with a deviation below 14.
    assert np.abs(np.histogram(held_out, 10, (0, 10_000))[0] - 200).max() < 60


def test_a_series_is_held_out_by_time():
    assert members(Arrays({"train": numbered(100)}, ordered=True)) == {
        "train": list(range(72)),
        "validation": list(range(72, 80)),
        "test": list(range(80, 100)),
    }


def test_splits_that_a_set_has_are_kept():
    given = {"train": numbered(50), "test": numbered(7, begin=100)}
    found = members(Arrays(given))
    assert found["test"] == list(range(100, 107))
    assert len(found["validation"]) == 5
    assert sorted(found["train"] + found["validation"]) == list(range(50))
    whole = given | {"validation": numbered(3, begin=200)}
    assert members(Arrays(whole)) == {
        name: arrays["label"].tolist() for name, arrays in whole.items()
    }


def test_a_fraction_of_zero_holds_nothing_out():
    arrays = {"train": numbered(10)}
    assert sizes(Arrays(arrays, test_fraction=0.0)) == {"train": 9, "validation": 1}
    assert sizes(Arrays(arrays, validation_fraction=0.0)) == {"train": 8, "test": 2}
    assert sizes(Arrays(arrays, test_fraction=0.0, validation_fraction=0.0)) == {"train": 10}


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"train": numbered(0)}, {}, "split 'train' of arrays is empty"),
        # A fifth of two is none.
        (
            {"train": numbered(2)},
            {},
            r"data.test_fraction=0.2 leaves no test .* \(train has 2\): raise",
        ),
        ({"train": numbered(4)}, {}, "data.validation_fraction=0.1 leaves no validation examples"),
        (
            {"train": numbered(1)},
            {"test_fraction": 0.0, "validation_fraction": 0.6},
            r"data.validation_fraction=0.6 leaves no training examples \(train has 1\): lower it",
        ),
        ({"train": numbered(10), "test": numbered(0)}, {}, "split 'test' of arrays is empty"),
        ({"train": numbered(10), "validation": numbered(0)}, {}, "'validation' of arrays is empty"),
    ],
)
def test_an_empty_split_is_refused(arrays, options, message):
    with pytest.raises(UserError, match=message) as caught:
        Splits(Arrays(arrays, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["test_fraction", "validation_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_a_fraction_must_be_a_share(field, value):
    with pytest.raises(UserError, match=rf"data\.{field} is a share in \[0, 1\)"):
        Digits(**{field: value})


def test_an_unknown_split_is_named_with_the_nearest():
    splits = Splits(Arrays({"train": numbered(20)}))
    for look in (splits.count, splits.pipeline):
        with pytest.raises(UserError, match=r"no split 'tset' .*did you mean 'test'\?"):
            look("tset")


def test_arrays_need_a_split_train_and_equal_lengths():
    with pytest.raises(UserError, match=r"need a split 'train' \(there are test\)"):
        Arrays({"test": numbered(3)})
    uneven = {"image": np.zeros((3, 2)), "label": np.zeros(4)}
    with pytest.raises(UserError, match=r"differ in length: {'image': 3, 'label': 4}"):
        Splits(Arrays({"train": uneven}))


def test_a_fingerprint_of_a_sample_says_so():
    class Sampled(Listed):
        digest_is_sampled = True

        def digest(self, source):
            return str(len(source))

    found = fingerprints(Sampled(arrays=numbered(20)))
    assert all(each["sampled"] is True for each in found.values())
    assert "sampled" not in fingerprints(Listed(arrays=numbered(20)))["train"]


def test_a_fingerprint_says_where_the_examples_come_from():
    found = fingerprints(Arrays({"train": numbered(100)}))
    assert {name: part["count"] for name, part in found.items()} == {
        "train": 72,
        "test": 20,
        "validation": 8,
    }
    for part in found.values():
        assert set(part) == {"source", "version", "count", "sha256"}
        assert part["source"] == "arrays"
        assert len(bytes.fromhex(part["sha256"])) == 32
    assert len({part["sha256"] for part in found.values()}) == 3


@dataclass(frozen=True, kw_only=True)
class Listed(Data):
    """A source of the user's own, of which nothing is known but its examples."""

    arrays: dict

    def load(self) -> dict[str, Source]:
        count = len(self.arrays["label"])
        rows = [{name: a[i] for name, a in self.arrays.items()} for i in range(count)]
        return {"train": rows}

    def full_name(self):
        return "listed:1"


def altered(arrays, name, index, value):
    changed = arrays[name].copy()
    changed[index] = value
    return arrays | {name: changed}


CHANGES = {
    "value": lambda a: altered(a, "image", (57, 0), 0.125),
    "label": lambda a: altered(a, "label", 99, 5),
    "dtype": lambda a: a | {"label": a["label"].astype(np.int32)},
    "shape": lambda a: a | {"image": a["image"][..., None]},
    "name": lambda a: {"picture": a["image"], "label": a["label"]},
    "order": lambda a: {name: array[::-1] for name, array in a.items()},
    "fewer": lambda a: {name: array[:-1] for name, array in a.items()},
}


@pytest.mark.parametrize("make", [lambda a: Arrays({"train": a}), lambda a: Listed(arrays=a)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_changes_with_the_examples(make, change):
    whole = {"test_fraction": 0.0, "validation_fraction": 0.0}
    arrays = numbered(100)
    before = fingerprints(dataclasses.replace(make(arrays), **whole))["train"]
    same = {name: array.copy() for name, array in reversed(arrays.items())}
    assert fingerprints(dataclasses.replace(make(same), **whole))["train"] == before
    after = fingerprints(dataclasses.replace(make(CHANGES[change](arrays)), **whole))["train"]
    assert after["sha256"] != before["sha256"]


@pytest.mark.parametrize(
    "change", [{"split_seed": 1}, {"ordered": True}, {"test_fraction": 0.3}], ids=str
)
def test_a_fingerprint_changes_with_the_members(change):
    data = Arrays({"train": numbered(100)})
    before, after = fingerprints(data), fingerprints(dataclasses.replace(data, **change))
    assert all(before[name]["sha256"] != after[name]["sha256"] for name in before)


def test_arrays_in_another_memory_layout_are_the_same_examples():
    image = np.arange(200.0).reshape(100, 2)
    first, second = (
        fingerprints(Arrays({"train": {"image": array, "label": np.arange(100)}}))
        for array in (image, np.asfortranarray(image))
    )
    assert first == second


def ragged():
    """Images of several sizes, in memory of their own."""
    images = np.empty(10, object)
    images[:] = [np.full((2, 2 + index, 1), index, np.uint8) for index in range(10)]
    return Arrays({"train": {"image": images, "label": np.arange(10)}})


def test_arrays_of_arrays_are_known_by_what_they_hold():
    one, other = ragged(), ragged()
    assert fingerprints(one) == fingerprints(other)
    assert flatten(one) == flatten(other)
    other.arrays["train"]["image"][3][0, 0] = 99
    assert fingerprints(one) != fingerprints(other)
    assert flatten(one) != flatten(other)


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    expected = datasets.load_digits()
    source = Digits().load()["train"]
    assert isinstance(source, ArraySource)
    assert source.arrays["image"].dtype == np.uint8
    assert source.arrays["label"].dtype == np.int32
    np.testing.assert_array_equal(source.arrays["image"][..., 0], expected.images)
    np.testing.assert_array_equal(source.arrays["label"], expected.target)
