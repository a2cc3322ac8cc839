"""Windows of time series: no leakage from the future, nor from the test split into scaling."""

import numpy as np
import pytest

import jdl
from jdl.data import Series
from jdl.errors import UserError
from jdl.models import RNN
from jdl.optimizers import Adam
from jdl.report import baselines
from jdl.tasks import Forecast

WAVE = 20 + 10 * np.sin(np.arange(120) / 3) + np.random.default_rng(0).normal(0, 0.5, 120)


def write(path, values, header="when,level"):
    rows = [f"day {i},{value}" for i, value in enumerate(values)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "wave.csv", WAVE)


def stack(source):
    return {name: np.stack([source[i][name] for i in range(len(source))]) for name in source[0]}


@pytest.mark.parametrize(
    ("log", "difference", "horizon"), [(0, 0, 1), (1, 0, 3), (0, 7, 1), (1, 2, 2)]
)
def test_every_value_is_forecast_once_from_those_before(file, log, difference, horizon):
    series = Series(file, length=5, horizon=horizon, log=bool(log), difference=difference)
    splits = {name: stack(source) for name, source in series.splits().items()}
    assert list(splits) == ["train", "validation", "test"]
    values = np.concatenate([part["value"][:, 0] for part in splits.values()])
    first = difference + 5 + horizon - 1
    np.testing.assert_allclose(values, WAVE[first:], rtol=1e-6)
    for part in splits.values():
        level = part["offset"] + part["scale"] * part["y"]
        own = np.exp(level) if log else level
        np.testing.assert_allclose(own, part["value"], rtol=1e-4)
        assert part["x"].shape[1:] == (5, 1)
        # The window's last value is the target of the window `horizon` steps before.
        np.testing.assert_allclose(
            part["x"][horizon:, -1], part["y"][:-horizon], rtol=1e-4, atol=1e-4
        )


def test_what_scales_the_values_is_fitted_on_training_alone(tmp_path):
    changed = WAVE.copy()
    changed[100:] *= 50
    old, new = (
        Series(write(tmp_path / f"{i}.csv", values), length=5, validation_fraction=0.0).splits()
        for i, values in enumerate((WAVE, changed))
    )
    for name in ("x", "y", "offset", "scale"):
        np.testing.assert_array_equal(stack(old["train"])[name], stack(new["train"])[name])
    known = stack(old["train"])["value"]
    scaled = stack(old["train"])["y"]
    assert abs(scaled.mean()) < 0.1
    assert abs(scaled.std() - 1) < 0.1
    assert known.max() < 40


def test_several_columns_and_one_target(tmp_path):
    path = tmp_path / "two.csv"
    rows = [f"{i},{i * i},x{i}" for i in range(40)]
    path.write_text("a,b,name\n" + "\n".join(rows))
    part = stack(Series(str(path), targets=("b",), length=4).splits()["train"])
    assert part["x"].shape[1:] == (4, 2)
    np.testing.assert_allclose(part["value"][:, 0], np.arange(4, 4 + len(part["y"])) ** 2)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n3\n", {}, "line 3: 1 fields, where the header has 2"),
        ("a\n1\nx\n", {}, "column 'a' holds 'x' in row 2"),
        ("a\n1\nnan\n", {}, "column 'a' holds 'nan' in row 2"),
        ("temp\n1\n2\n", {"columns": ("tmp",)}, r"no column 'tmp' .*did you mean 'temp'\?"),
        ("a\n1\n2\n3\n", {"length": 20}, "3 values, too few .* windows of 21"),
        ("a\n" + "0\n" * 60, {"log": True}, "0, which has no logarithm"),
        ("a\n", {}, "no rows below a header"),
        ("name\nx\ny\n", {}, "no column of numbers"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, options, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Series(str(path), **options).splits()
    assert len(str(caught.value).splitlines()) == 1
    assert "bad.csv" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"horizon": 0},
        {"difference": -1},
        {"difference": 2, "horizon": 3},
        {"ordered": False},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Series("x.csv", **options)


def test_baselines_are_what_statistics_says(file):
    series = Series(file, length=5, validation_fraction=0.0)
    test = len(series.splits()["test"])
    steps = np.diff(WAVE)[-test:]
    assert baselines.persistence(series) == pytest.approx(np.sqrt(np.mean(steps**2)))
    train = WAVE[: len(WAVE) - test]
    lags = np.column_stack([np.ones(len(train) - 5), train[4:-1], train[3:-2]])
    weights = np.linalg.lstsq(lags, train[5:], rcond=None)[0]
    places = np.arange(len(train), len(WAVE))
    found = weights[0] + weights[1] * WAVE[places - 1] + weights[2] * WAVE[places - 2]
    expected = np.sqrt(np.mean((found - WAVE[places]) ** 2))
    assert baselines.autoregression(series, 2) == pytest.approx(expected, rel=1e-6)


def test_a_recurrent_network_beats_persistence_in_the_series_own_unit(file, tmp_path):
    series = Series(file, length=10, validation_fraction=0.0)
    experiment = jdl.Experiment(
        model=RNN(vocab_size=0, cell="simple", hidden_size=16),
        task=Forecast(),
        data=series,
        optimizer=Adam(1e-2),
        epochs=40,
        batch_size=32,
    )
    run = jdl.train(experiment, tmp_path / "run")
    scores = run.evaluate("test")
    assert scores["rmse"] < 0.7 * baselines.persistence(series)
    test = stack(series.splits()["test"])
    found = run.predict(test)
    rmse = np.sqrt(np.mean((np.asarray(found) - test["value"]) ** 2))
    assert scores["rmse"] == pytest.approx(rmse, rel=1e-4)


def test_times_that_go_back_repeat_or_are_left_out(tmp_path, caplog):
    days = list(np.arange("2024-01-28", "2024-03-08", dtype="datetime64[D]"))

    def given(name, days, **options):
        path = tmp_path / f"{name}.csv"
        rows = [f"{day},{index % 5},0" for index, day in enumerate(days)]
        path.write_text("\n".join(["when,level,other", *rows]) + "\n")
        return path, Series(str(path), length=3, **options)

    months = np.arange("2020-01", "2023-05", dtype="datetime64[M]")
    for whole in (days, [f"{month}-01" for month in months]):
        given("whole", whole)[1].splits()
        assert not caplog.text
    _, series = given("gap", [*days[:10], *days[12:]], columns=("level",))
    series.splits()
    assert (
        "gap.csv: column 'when' repeats a time or leaves some out at 1 rows, first at row 11"
        in (caplog.text)
    )
    reader = series.with_fitted(series.fit()).reader()
    again, _ = given("again", [*days[:10], *days[9:]])
    reader(again)
    assert "again.csv: column 'when' repeats a time" in caplog.text
    back, _ = given("back", [*days[10:], *days[:10]])
    with pytest.raises(UserError, match=r"back\.csv: column 'when' goes back in time at row 31"):
        reader(back)
