"""Search spaces: points, grids, constraints, validation and flags."""

import math

import flax.linen as nn
import pytest

import jdl
from jdl.errors import UserError
from jdl.sweeps.search import Choice, Int, LogUniform, Uniform, When
from jdl.sweeps.search.parsing import parse_space
from jdl.sweeps.search.space import describe, grid_points, space_as_json, suggest, validate

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

NESTED = {
    "optimizer": Choice(
        "adam",
        When("sgd", {"optimizer.momentum": Choice(0.0, 0.9), "optimizer.nesterov": Choice(False)}),
    ),
    "model.widths": Choice((16,), (8, 8)),
    "batch_size": Int(8, 31, step=8),
}


@pytest.fixture(scope="module")
def experiment():
    return jdl.load("digits_mlp").experiment


def test_a_grid_holds_every_point_once_and_no_unused_conditional_values(experiment):
    points = [suggest(NESTED, optuna.trial.FixedTrial(values)) for values in grid_points(NESTED)]
    assert len(points) == (1 + 2) * 2 * 3
    assert len({str(point) for point in points}) == len(points)
    for point in points:
        assert ("optimizer.momentum" in point) == (point["optimizer"] == "sgd")
        assert point["batch_size"] in (8, 16, 24)
        changed = jdl.override(experiment, point)
        assert changed.batch_size == point["batch_size"]
        assert changed.model.widths == point["model.widths"]
    assert validate(NESTED, experiment) is None


def test_samples_are_in_range_and_distributed_as_declared():
    space = {
        "a": Int(3, 10, step=4),
        "b": Uniform(-1.0, 1.0),
        "c": LogUniform(1e-4, 1e4),
        "d": Uniform(0.0, 0.5, step=0.2),
        "e": When("x", {"f": Choice(None, (1, 2), "y")}),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [suggest(space, study.ask()) for _ in range(400)]
    assert {point["a"] for point in points} == {3, 7}
    assert all(-1 <= point["b"] <= 1 for point in points)
    assert abs(sum(math.log(point["c"]) for point in points)) / 400 < 1
    assert sum(point["c"] < 1 for point in points) == pytest.approx(200, abs=50)
    assert {point["d"] for point in points} == {0.0, 0.2, 0.4}
    assert {point["e"] for point in points} == {"x"}
    assert {point["f"] for point in points} == {None, (1, 2), "y"}


def test_a_space_is_described_without_addresses():
    assert {row["name"]: row["path"] for row in space_as_json(NESTED)} == {
        "optimizer": "optimizer",
        "optimizer.momentum (optimizer=sgd)": "optimizer.momentum",
        "optimizer.nesterov (optimizer=sgd)": "optimizer.nesterov",
        "model.widths": "model.widths",
        "batch_size": "batch_size",
    }
    rows = {row["path"]: row for row in space_as_json(NESTED)}
    assert rows["optimizer"]["options"] == ["adam", "sgd"]
    assert rows["model.widths"]["options"] == ["[16]", "[8, 8]"]
    assert [rows["batch_size"][name] for name in ("kind", "low", "high", "step")] == [
        "int", 8, 31, 8,
    ]  # fmt: skip
    functions = {"model.activation": Choice(nn.relu, nn.gelu, lambda x: x)}
    assert "0x" not in str(describe(functions)) + str(space_as_json(functions))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {suggest(functions, study.ask())["model.activation"] for _ in range(20)}
    assert {nn.relu, nn.gelu} < drawn


def test_constraints_restrict_a_grid():
    space = {"a": Int(1, 4), "b": Int(1, 4)}
    left = grid_points(space, [lambda point: point["a"] < point["b"]])
    assert len(left) == 6
    with pytest.raises(UserError, match="no point of the grid satisfies"):
        grid_points(space, [lambda point: point["a"] > 4])
    with pytest.raises(UserError, match=r"the constraint <lambda> fails on .*KeyError"):
        grid_points(space, [lambda point: point["c"]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Int(5, 4), "the range is empty"),
        (lambda: Uniform(0.0, math.inf), "the range is empty"),
        (lambda: Int(0, 4, step=0), "the step must be positive"),
        (lambda: LogUniform(0.0, 1.0), "positive numbers only"),
        (lambda: Choice(), "has no options"),
        (lambda: Choice("a", When("a", {})), "two options are the same"),
        (lambda: grid_points({"x": Uniform(0.0, 1.0)}), r"^x: .* has no step"),
        (lambda: grid_points({"x": When("y", {"z": LogUniform(1.0, 2.0)})}), r"^z: .* has no step"),
    ],
)
def test_invalid_dimensions_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the search space is empty"),
        ({"optimizer.learning_rat": Uniform(0.0, 1.0)}, "did you mean 'learning_rate'"),
        ({"model.widths.1": Int(1, 2)}, "model.widths.1"),
        ({"optimizer.learning_rate": (0.1, 1.0)}, "is not a dimension"),
        ({"optimizer": Choice("adam", jdl.optimizers.SGD(0.1))}, r"an option is .*SGD\(.*When"),
        ({"batch_size": Uniform(1.0, 2.5)}, "batch_size: .*not of type int"),
        ({"optimizer": Choice("adam", When("sgd", {"optimizer.b1": Uniform(0.0, 1.0)}))}, "b1"),
        ({"optimizer.learning_rate": Uniform(-1.0, 1.0)}, "learning_rate"),
    ],
)
def test_a_space_is_validated_against_the_experiment(space, message, experiment):
    with pytest.raises(UserError, match=message):
        validate(space, experiment)


def test_flags_are_parsed_to_dimensions():
    words = ["optimizer.learning-rate=log:1e-4:1e-1", "a.b=int:32:512:32", "c=uniform:0:0.5"]
    assert parse_space([*words, "d=choice:sgd,3,0.5"]) == {
        "optimizer.learning_rate": LogUniform(1e-4, 1e-1),
        "a.b": Int(32, 512, step=32),
        "c": Uniform(0.0, 0.5),
        "d": Choice("sgd", 3, 0.5),
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a", "write PATH=KIND"),
        ("a=1:2", "there is no kind '1'"),
        ("a=lgo:1:2", "did you mean 'log'"),
        ("a=int:1:x", "int takes numbers LOW:HIGH"),
        ("a=log:1:2:3", "log takes numbers LOW:HIGH, not"),
        ("a=int:3", r"int takes numbers LOW:HIGH\[:STEP\], not"),
    ],
)
def test_a_malformed_flag_is_refused(word, message):
    with pytest.raises(UserError, match=message):
        parse_space([word])
