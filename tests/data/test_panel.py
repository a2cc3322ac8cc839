"""Windows of panels: what is known when, gaps, duplicates, disorder, folds."""

import numpy as np
import pytest

from jdl.data import Panel
from jdl.data.time_grid import fill_forward
from jdl.errors import UserError

HEADER = "when,shop,size,region,price,visits,sold"


def rows(count=60, shops=("a", "b")):
    found = []
    for index in range(count):
        for place, shop in enumerate(shops):
            day = np.datetime64("2024-01-01") + index
            size, region = 10 * (place + 1), ("north", "south")[place]
            sold = 5 + 3 * place + (index % 7) + 0.01 * index
            found.append(f"{day},{shop},{size},{region},{index % 5},{index % 3},{sold}")
    return found


def write(tmp_path, lines, header=HEADER):
    path = tmp_path / "shops.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def panel(path, **changes):
    fields = {
        "time": "when", "targets": ("sold",), "series": "shop", "past": ("visits",),
        "future": ("price",), "static": ("size", "region"), "periods": (168.0,),
        "length": 7, "horizon": 3, "season": 7, "validation_fraction": 0.0,
    }  # fmt: skip
    return Panel(path, **{**fields, **changes})


def windows(source):
    return source.read(np.arange(len(source)))


def test_covariates_are_known_when_they_are(tmp_path):
    splits = panel(write(tmp_path, rows())).splits()
    train, test = windows(splits["train"]), windows(splits["test"])
    # Targets, observed, visits, price, sine and cosine; then size, two regions, level and scale.
    assert train["past"].shape[1:] == (7, 6)
    assert train["future"].shape[1:] == (3, 3)
    assert train["static"].shape[1:] == (1 + 2 + 2,)
    np.testing.assert_allclose(
        train["offset"][:, None] + train["scale"][:, None] * train["y"], train["value"], rtol=1e-5
    )
    # 60 steps of which the last 12 are tested: horizons never overlap those of training.
    assert len(test["y"]) == 2 * 10
    assert len(train["y"]) == 2 * (48 - 7 - 3 + 1)
    sold = np.array([[float(row.split(",")[-1]) for row in rows()[shop::2]] for shop in (0, 1)])
    np.testing.assert_allclose(train["value"][0, :, 0], sold[0, 7:10], rtol=1e-6)
    np.testing.assert_allclose(test["value"][-1, :, 0], sold[1, -3:], rtol=1e-6)
    # A week later by the naive forecast: the slope alone.
    np.testing.assert_allclose(train["naive_error"], 0.07, rtol=1e-4)
    price = np.array([index % 5 for index in range(48)], float)
    scaled = (np.array([7, 8, 9]) % 5 - price.mean()) / price.std()
    np.testing.assert_allclose(train["future"][0, :, 0], scaled, rtol=1e-5)
    one = splits["test"][3]
    np.testing.assert_array_equal(one["past"], test["past"][3])


def test_what_comes_later_changes_nothing_before(tmp_path):
    lines = rows()
    old = panel(write(tmp_path, lines)).splits()
    changed = [*lines[:96], *(f"{line[: line.rindex(',')]},99" for line in lines[96:])]
    new = panel(write(tmp_path, changed)).splits()
    for name, values in windows(old["train"]).items():
        np.testing.assert_array_equal(values, windows(new["train"])[name])
    first = {name: values[0] for name, values in windows(old["test"]).items()}
    for name in ("past", "future", "static", "offset", "scale"):
        np.testing.assert_array_equal(first[name], windows(new["test"])[name][0])


def test_folds_are_rolling_origins(tmp_path):
    path = write(tmp_path, rows())
    tested = []
    for fold in range(3):
        splits = panel(path, fold=fold, folds=3, test_fraction=0.2).splits()
        tested.append((len(splits["train"]), windows(splits["test"])["value"][0, 0, 0]))
    assert [count for count, _ in tested] == [2 * (24 + 12 * fold - 9) for fold in range(3)]
    sold = [float(row.split(",")[-1]) for row in rows()[::2]]
    np.testing.assert_allclose([x for _, x in tested], [sold[24], sold[36], sold[48]], rtol=1e-6)
    shorter = panel(path, end="2024-02-01").splits()["test"]
    np.testing.assert_allclose(windows(shorter)["value"].max(), max(sold[:31]) + 3, rtol=1e-5)


def test_gaps_are_filled_in_inputs_and_left_out_of_targets(tmp_path):
    lines = rows(shops=("a",))
    lines[20] = lines[20][: lines[20].rindex(",") + 1]  # no value
    del lines[30]  # no row
    found = windows(panel(write(tmp_path, lines), static=()).splits()["train"])
    seen = {name: found[name][13] for name in ("past", "observed", "y")}  # forecasts 20 to 22
    np.testing.assert_array_equal(seen["observed"][:, 0], [False, True, True])
    assert seen["y"][0, 0] == 0
    after = found["past"][14]  # days 14 to 20
    assert after[-1, 1] == 0
    assert after[-1, 0] == 0  # the last known value
    np.testing.assert_array_equal(found["past"][24][:, 1], [1, 1, 1, 1, 1, 1, 0])
    values = np.array([[np.nan, np.nan], [1, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(fill_forward(values), [[1, 0], [1, 0], [1, 0]])


@pytest.mark.parametrize("kind", ["first", "last", "mean"])
def test_duplicates_are_resolved_where_told(tmp_path, kind):
    lines = rows(shops=("a",))
    lines.insert(11, lines[10][: lines[10].rindex(",") + 1] + "1005.1")
    path = write(tmp_path, lines)
    with pytest.raises(UserError, match=r"rows 11 and 12 have the same time .*data.duplicates"):
        panel(path, static=()).splits()
    value = windows(panel(path, static=(), duplicates=kind).splits()["train"])["value"][3, 0, 0]
    old = float(lines[10].rsplit(",", 1)[1])
    expected = {"first": old, "last": 1005.1, "mean": (old + 1005.1) / 2}[kind]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    lines[11] = lines[10]  # the same row again
    assert len(panel(write(tmp_path, lines), static=()).splits()["train"]) == 48 - 9


def edit(lines, place, old, new):
    return [*lines[:place], lines[place].replace(old, new, 1), *lines[place + 1 :]]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: [*x[2:10], *x[:2], *x[10:]], {}, r"row 9 of series 'a' goes back in time: sort"),
        (lambda x: x, {"series": None, "static": ()}, "rows 1 and 2 have the same time"),
        (lambda x: edit(x, 8, "2024-01-05", "2024-01-05 06:00"), {}, r"row 9 is \+0.25 steps off"),
        (lambda x: edit(x, 8, "2024-01-05", "soon"), {}, "'soon' in row 9, no date"),
        (lambda x: edit(x, 8, "2024-01-05", ""), {}, "'when' has no time in row 9"),
        (lambda x: edit(x, 8, ",a,", ",,"), {}, "'shop' names no series in row 9"),
        (lambda x: edit(x, 8, ",10,", ",11,"), {}, "'size' in data.static changes .* in row 9"),
        (lambda x: x[:16], {}, "no window of 7 . 3 steps in split 'train'"),
        (lambda x: x, {"end": "2023-01-01"}, "no row before data.end"),
        (lambda x: x, {"end": "soon"}, "data.end must be a date"),
        (lambda x: x, {"time_format": "%d.%m.%Y"}, "'2024-01-01' in row 1, which is not written"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, change, options, message):
    with pytest.raises(UserError, match=message) as caught:
        panel(write(tmp_path, change(rows())), **options).splits()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ()}, "names no column"),
        ({"past": ("sold",)}, "'sold' has two roles"),
        ({"horizon": 0}, "data.horizon must be at least 1"),
        ({"season": 8}, "a window must hold a season"),
        ({"fold": 1}, "data.fold 1 is not in 0 to 0"),
        ({"folds": 5}, "leave nothing to train on"),
        ({"periods": (0.0,)}, "hours above 0"),
        ({"ordered": False}, "ordered"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        panel("shops.csv", **options)


def test_a_future_covariate_that_is_the_target_is_refused(tmp_path):
    lines = [f"{line},{2 * float(line.rsplit(',', 1)[1]) - 1}" for line in rows()]
    path = write(tmp_path, lines, f"{HEADER},revenue")
    with pytest.raises(UserError, match=r"'revenue' in data.future is the target 'sold'"):
        panel(path, future=("price", "revenue")).splits()
    panel(path, past=("revenue",)).splits()  # known in the past, which is no leak


def test_times_in_another_format(tmp_path):
    lines = [f"{line[8:10]}.{line[5:7]}.{line[:4]}{line[10:]}" for line in rows()]
    own = windows(panel(write(tmp_path, rows())).splits()["train"])
    found = windows(panel(write(tmp_path, lines), time_format="%d.%m.%Y").splits()["train"])
    for name, values in own.items():
        np.testing.assert_array_equal(values, found[name])


def test_a_file_to_predict_from_begins_after_the_last_value(tmp_path, caplog):
    path = write(tmp_path, rows())
    known = panel(path)
    known = known.with_fitted(known.fit())
    later = [
        f"{line[: line.rindex(',')]}," if at >= 114 else line for at, line in enumerate(rows())
    ]
    new = tmp_path / "new.csv"
    new.write_text("\n".join([HEADER, *later]) + "\n")
    found, own = known.reader()(new), windows(known.splits()["test"])
    for name in ("past", "future", "static", "offset", "scale"):
        np.testing.assert_allclose(found[name], own[name][[9, 19]], rtol=1e-5, atol=1e-6)
    assert known.example_names(new) == {"series": ["a", "b"]}
    new.write_text(new.read_text().replace(",north,", ",west,"))
    known.reader()(new)
    assert "column 'region' holds 'west' in row 1, which no training row has" in caplog.text
    assert panel(path, series=None).example_names(new) == {}
    new.write_text("\n".join([HEADER, *rows()]) + "\n")
    with pytest.raises(UserError, match=r"series 'a' of .* lacks price for the last 3 of 3 steps"):
        known.reader()(new)
    new.write_text("\n".join([HEADER, *rows(5)]) + "\n")
    with pytest.raises(UserError, match="has 5 steps, a forecast needs 7"):
        known.reader()(new)
