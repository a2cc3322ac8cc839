"""Overrides of an experiment by path, from text and from Python values."""

import itertools
import random
import re
import string

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import UserError, override
from jdl.config.overrides import flatten, paths
from jdl.data import TFDS, Arrays, Digits, RandomFlip, Resize, Scale
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate, Progress
from jdl.models import CNN, MLP
from jdl.optimizers import SGD, Adam, AdamW, Cosine
from jdl.parallel import FullySharded, Pmap
from jdl.tasks import Regression

EXPERIMENT = jdl.Experiment(
    model=MLP(widths=(128, 64)),
    data=Digits(device_transforms=(RandomFlip(), Scale(divisor=16.0))),
    epochs=3,
)


def label(value):
    """A name for a case of a parametrized test."""
    return value if isinstance(value, str) else type(value).__name__


def at(config, path):
    """Returns the value at a path, by `getattr` and indices alone."""
    for name in path.replace("-", "_").split("."):
        config = config[int(name)] if name.isdigit() else getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("epochs", "2.5", 2.5),
        ("epochs", 2, 2.0),
        ("steps", "7", 7),
        ("steps", None, None),
        ("batch_size", np.int64(8), 8),
        ("batch-size", "8", 8),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning-rate", 3e-4, 3e-4),
        ("optimizer.learning_rate", np.float32(0.25), 0.25),
        ("optimizer.clip_norm", "1", 1.0),
        ("optimizer.clip_norm", "None", None),
        ("precision", "bf16", "bf16"),
        ("data.pipeline", "grain", "grain"),
        ("data.ordered", "True", True),
        ("data.ordered", "true", True),
        ("data.ordered", "false", False),
        ("data.ordered", True, True),
        ("task.inputs", "digits", "digits"),
        ("task.inputs", "7", "7"),
        ("model.widths", "32", (32,)),
        ("model.widths", ["32", "16", "8"], (32, 16, 8)),
        ("model.widths", [32, 16], (32, 16)),
        ("model.widths", (), ()),
        ("model.widths.0", "7", 7),
        ("model.widths.1", 7, 7),
        ("model.activation", "flax.linen.gelu", nn.gelu),
        ("model.activation", nn.tanh, nn.tanh),
        ("model.dtype", "jax.numpy.bfloat16", jnp.bfloat16),
        ("model", CNN(num_classes=3), CNN(num_classes=3)),
        ("hooks.3.every", "10", 10),
        ("hooks.2.splits", ["train", "validation"], ("train", "validation")),
        ("hooks", (), ()),
        ("hooks", (Progress(), Evaluate(every=3)), (Progress(), Evaluate(every=3))),
        ("data.device_transforms.1.divisor", "2", 2.0),
        ("data.device-transforms.0", Scale(), Scale()),
        ("data.device_transforms", (Scale(),), (Scale(),)),
        ("data.device_transforms", (), ()),
        ("data.transforms", [Resize(height=4)], (Resize(height=4),)),
        ("optimizer", SGD(0.5), SGD(0.5)),
    ],
    ids=label,
)
def test_a_value_from_text_or_python(path, value, expected):
    found = at(override(EXPERIMENT, {path: value}), path)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("optimizer", "sgd", SGD()),
        ("optimizer", "SGD", SGD()),
        ("optimizer", "adamw", AdamW()),
        ("optimizer", "AdamW", AdamW()),
        ("optimizer", "adam_w", AdamW()),
        ("optimizer.schedule", "cosine", Cosine()),
        ("strategy", "fully_sharded", FullySharded()),
        ("strategy", "fully-sharded", FullySharded()),
        ("strategy", "FullySharded", FullySharded()),
        ("strategy", "pmap", Pmap()),
        ("task", "regression", Regression()),
        ("model", "cnn", CNN()),
        ("model", "MLP", EXPERIMENT.model),
        ("hooks", "progress", (Progress(),)),
        ("hooks", ["early_stopping", "Checkpoint"], (EarlyStopping(), Checkpoint())),
        ("hooks.0", "early-stopping", EarlyStopping()),
    ],
)
def test_a_class_by_name(path, name, expected):
    assert at(override(EXPERIMENT, {path: name}), path) == expected


def test_a_class_by_name_with_its_fields():
    changed = override(
        EXPERIMENT,
        {"optimizer.momentum": "0.9", "optimizer": "sgd", "hooks.0.patience": 7}
        | {"hooks.0": "early_stopping", "optimizer.schedule.warmup": 0.25}
        | {"optimizer.schedule": "cosine"},
    )
    assert changed.optimizer == SGD(momentum=0.9, schedule=Cosine(warmup=0.25))
    assert changed.hooks == (EarlyStopping(patience=7), *EXPERIMENT.hooks[1:])


def test_fields_that_a_class_cannot_do_without():
    assert override(EXPERIMENT, {"data": "tfds", "data.name": "mnist"}).data == TFDS("mnist")
    with pytest.raises(UserError, match=r"^data: tfds also needs data\.name"):
        override(EXPERIMENT, {"data": "tfds"})
    kept = override(EXPERIMENT, {"data": TFDS("mnist", split_seed=2)})
    assert override(kept, {"data": "tfds"}).data == TFDS("mnist", split_seed=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": None, "steps": 5},
        {"batch_size": 33, "num_microbatches": 3},
        {"optimizer": "sgd", "optimizer.nesterov": "True", "optimizer.momentum": "0.9"},
        {"hooks.1": "evaluate", "hooks.1.every": 4, "hooks.1.splits": "train"},
    ],
    ids=str,
)
def test_the_order_of_changes_does_not_matter(changes):
    results = [override(EXPERIMENT, dict(o)) for o in itertools.permutations(changes.items())]
    for result in results:
        assert flatten(result) == flatten(results[0])
        assert all(at(result, path) is not None for path in changes if path != "epochs")
    assert flatten(results[0]) != flatten(EXPERIMENT)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 4.0},
        {"seed": 3, "batch_size": 8, "model.widths": [16]},
        {"model.activation": "flax.linen.tanh", "model.dropout_rate": 0.5, "model.features": 3},
        {"data.device_transforms.1.divisor": 2.0, "data.split_seed": 9},
        {"hooks.3.every": 5, "hooks.2.splits": ["train"], "optimizer.clip_norm": 1.0},
        {"precision": "bf16", "steps": 11, "epochs": 1.0},
    ],
    ids=str,
)
def test_exactly_what_was_asked_for_changes(changes):
    before = flatten(EXPERIMENT)
    after = flatten(override(EXPERIMENT, changes))
    differing = {
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    }
    assert differing == set(changes)
    for path, value in changes.items():
        assert after[path] == ("jax.numpy.tanh" if "activation" in path else value)
    assert flatten(EXPERIMENT) == before


def test_another_class_changes_only_what_lies_below_it():
    before, after = flatten(EXPERIMENT), flatten(override(EXPERIMENT, {"optimizer": "sgd"}))
    assert (before["optimizer"], after["optimizer"]) == ("adam", "sgd")
    for path in before.keys() | after.keys():
        if path.split(".")[0] != "optimizer":
            assert before[path] == after[path]


def test_flatten_names_every_leaf_as_json():
    found = flatten(EXPERIMENT)
    assert found["model.widths"] == [128, 64]
    assert found["hooks.3"] == "checkpoint"
    assert found["data.device_transforms.1.divisor"] == 16.0
    assert found["optimizer.clip_norm"] is None
    assert not {"model.name", "model.parent"} & found.keys()
    assert {path.split(".")[0] for path in found} == set(vars(EXPERIMENT))
    one, other = (Arrays({"train": {"x": np.full(3, value)}}) for value in (0.0, 1.0))
    assert flatten(one)["arrays.train.x"] != flatten(other)["arrays.train.x"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", "three"),
        ("steps", "1.5"),
        ("steps", True),
        ("batch_size", 2.5),
        ("batch_size", None),
        ("batch_size", ["1", "2"]),
        ("steps", nn.relu),
        ("steps", SGD()),
        ("data.ordered", "maybe"),
        ("data.ordered", 3),
        ("precision", "fp16"),
        ("data.pipeline", 3),
        ("model.widths", "wide"),
        ("model.widths", ["8", "x"]),
        ("model.widths", "1.5"),
        ("model.widths", "None"),
        ("model.widths.0", "x"),
        ("model.activation", "gelu"),
        ("model.activation", "no.such.function"),
        ("model.activation", "math.pi"),
        ("model", "jdl.models.CNN"),
        ("model", SGD()),
        ("optimizer", SGD),
        ("optimizer", "None"),
        ("optimizer", MLP()),
        ("optimizer", 5),
        ("strategy", SGD()),
        ("hooks", SGD()),
        ("hooks.0", SGD()),
        ("hooks.0", Adam()),
        ("data.device_transforms.0", "jdl.data.RandomFlip"),
        ("data.device_transforms.0", "7"),
    ],
    ids=label,
)
def test_a_value_of_the_wrong_type_is_refused(path, value):
    with pytest.raises(UserError, match=rf"^{re.escape(path)}: ") as caught:
        override(EXPERIMENT, {path: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.widths.2", "2 elements"),
        ("model.widths.-1", "2 elements"),
        ("model.widths.first", "2 elements"),
        ("hooks.5", "5 elements"),
        ("hooks.5.every", "5 elements"),
        ("hooks.x.every", "5 elements"),
        ("model.name", "MLP has no field 'name'"),
        ("model.parent", "MLP has no field 'parent'"),
        ("epochs.x", "has no field 'x'"),
        ("a..b", "has no field 'a'"),
        ("", "has no field ''"),
        ("model.", "has no field ''"),
        ("optimzer", "did you mean 'optimizer'"),
        ("Batch-Sizes", "did you mean 'batch_size'"),
        ("optimizer.learningrate", "did you mean 'learning_rate'"),
        ("data.device_transforms.1.divsor", "did you mean 'divisor'"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path, message):
    with pytest.raises(UserError) as caught:
        override(EXPERIMENT, {path: "1"})
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}:".replace("-", "_"))
    assert message in sentence
    assert "\n" not in sentence


def test_large_values_are_not_printed():
    arrays = {"train": {"image": np.zeros((3000, 9)), "label": np.zeros(3000, int)}}
    experiment = jdl.Experiment(model=MLP(), data=Arrays(arrays), epochs=1)
    for path in ("data.arrays.train", "data.arrays.train.image", "data.arrays", "data.arrays.x.y"):
        with pytest.raises(UserError, match=rf"^{re.escape(path)}: ") as caught:
            override(experiment, {path: "1"})
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "name", "hint"),
    [
        ("optimizer", "adm", "adam"),
        ("strategy", "fuly_sharded", "fully_sharded"),
        ("optimizer.schedule", "cosin", "cosine"),
        ("task", "clasification", "classification"),
        ("model", "ccnn", "cnn"),
        ("hooks.0", "evalute", "evaluate"),
        ("hooks", ["progress", "chekpoint"], "checkpoint"),
    ],
)
def test_an_unknown_class_is_named_with_the_nearest(path, name, hint):
    with pytest.raises(UserError, match=rf"^{path}: .*did you mean '{hint}'\?$"):
        override(EXPERIMENT, {path: name})


def test_values_out_of_range_are_refused():
    for path, value in (("epochs", -1), ("batch_size", 0), ("optimizer.learning_rate", "nan")):
        with pytest.raises(UserError, match=path.split(".")[-1]):
            override(EXPERIMENT, {path: value})


def typo(generator, path):
    """The path with one letter replaced, dropped, doubled or followed by another; and where."""
    place = generator.choice([i for i, letter in enumerate(path) if letter.isalpha()])
    letter, other = path[place], generator.choice(string.ascii_lowercase)
    wrong = generator.choice([other, "", 2 * letter, letter + other])
    return path[:place] + wrong + path[place + 1 :], place


def test_typing_errors_are_refused_and_nearly_all_understood():
    generator = random.Random(0)
    leaves = {
        path: value
        for path, (_, value) in paths(EXPERIMENT).items()
        if isinstance(value, (bool, int, float, str))
    }
    for path, value in leaves.items():
        override(EXPERIMENT, {path: str(value)})  # each is a valid path as it stands
    understood = tried = 0
    while tried < 200:
        path = generator.choice(sorted(leaves))
        wrong, place = typo(generator, path)
        if wrong in paths(EXPERIMENT):
            continue
        tried += 1
        with pytest.raises(UserError) as caught:
            override(EXPERIMENT, {wrong: str(leaves[path])})
        begin = path.rfind(".", 0, place) + 1
        right = path[begin:].split(".")[0]
        understood += f"did you mean '{right}'?" in str(caught.value)
    assert understood >= 0.95 * tried
