"""A space gives points that fit the experiment, and refuses what cannot be meant."""

import math

import flax.linen as nn
import pytest

import jdl
from jdl.errors import UserError
from jdl.sweeps.search import Choice, Int, LogUniform, Uniform, When
from jdl.sweeps.search.parsing import parse
from jdl.sweeps.search.space import Fixed, check, describe, grid, listed, suggest

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


def test_a_grid_holds_every_point_once_and_nothing_below_what_is_not_taken(experiment):
    points = [suggest(NESTED, Fixed(values)) for values in grid(NESTED)]
    assert len(points) == (1 + 2) * 2 * 3
    assert len({str(point) for point in points}) == len(points)
    for point in points:
        assert ("optimizer.momentum" in point) == (point["optimizer"] == "sgd")
        assert point["batch_size"] in (8, 16, 24)
        changed = jdl.override(experiment, point)
        assert changed.batch_size == point["batch_size"]
        assert changed.model.widths == point["model.widths"]
    assert check(NESTED, experiment) is None


def test_draws_stay_inside_and_are_spread_as_told():
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


def test_a_space_is_told_by_its_dimensions_and_no_addresses():
    assert {row["name"]: row["path"] for row in listed(NESTED)} == {
        "optimizer": "optimizer",
        "optimizer.momentum (optimizer=sgd)": "optimizer.momentum",
        "optimizer.nesterov (optimizer=sgd)": "optimizer.nesterov",
        "model.widths": "model.widths",
        "batch_size": "batch_size",
    }
    rows = {row["path"]: row for row in listed(NESTED)}
    assert rows["optimizer"]["options"] == ["adam", "sgd"]
    assert rows["model.widths"]["options"] == ["[16]", "[8, 8]"]
    assert [rows["batch_size"][name] for name in ("kind", "low", "high", "step")] == [
        "int", 8, 31, 8,
    ]  # fmt: skip
    functions = {"model.activation": Choice(nn.relu, nn.gelu, lambda x: x)}
    assert "0x" not in str(describe(functions)) + str(listed(functions))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {suggest(functions, study.ask())["model.activation"] for _ in range(20)}
    assert {nn.relu, nn.gelu} < drawn


def test_constraints_thin_a_grid_out():
    space = {"a": Int(1, 4), "b": Int(1, 4)}
    left = grid(space, [lambda point: point["a"] < point["b"]])
    assert len(left) == 6
    with pytest.raises(UserError, match="let no point"):
        grid(space, [lambda point: point["a"] > 4])
    with pytest.raises(UserError, match=r"the constraint <lambda> fails on .*KeyError"):
        grid(space, [lambda point: point["c"]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Int(5, 4), "the range is empty"),
        (lambda: Uniform(0.0, math.inf), "the range is empty"),
        (lambda: Int(0, 4, step=0), "a step is positive"),
        (lambda: LogUniform(0.0, 1.0), "positive numbers only"),
        (lambda: Choice(), "nothing to choose from"),
        (lambda: Choice("a", When("a", {})), "there twice"),
        (lambda: grid({"x": Uniform(0.0, 1.0)}), r"^x: .* has no step"),
        (lambda: grid({"x": When("y", {"z": LogUniform(1.0, 2.0)})}), r"^z: .* has no step"),
    ],
)
def test_what_cannot_be_searched_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "nothing may vary"),
        ({"optimizer.learning_rat": Uniform(0.0, 1.0)}, "did you mean 'learning_rate'"),
        ({"model.widths.1": Int(1, 2)}, "model.widths.1"),
        ({"optimizer.learning_rate": (0.1, 1.0)}, "is no dimension"),
        ({"optimizer": Choice("adam", jdl.optimizers.SGD(0.1))}, r"an option is .*SGD\(.*When"),
        ({"batch_size": Uniform(1.0, 2.5)}, "batch_size: .*not of type int"),
        ({"optimizer": Choice("adam", When("sgd", {"optimizer.b1": Uniform(0.0, 1.0)}))}, "b1"),
        ({"optimizer.learning_rate": Uniform(-1.0, 1.0)}, "learning_rate"),
    ],
)
def test_a_space_is_held_against_the_experiment(space, message, experiment):
    with pytest.raises(UserError, match=message):
        check(space, experiment)


def test_words_of_the_command_line_mean_dimensions():
    words = ["optimizer.learning-rate=log:1e-4:1e-1", "a.b=int:32:512:32", "c=uniform:0:0.5"]
    assert parse([*words, "d=choice:sgd,3,0.5"]) == {
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
        ("a=int:1:x", "are not numbers"),
        ("a=log:1:2:3", "log takes 2 numbers"),
        ("a=int:3", "int takes 2 or 3 numbers"),
    ],
)
def test_a_word_of_another_form_is_refused(word, message):
    with pytest.raises(UserError, match=message):
        parse([word])
