"""`jdl curve`, and parts of the training data."""

import json
import re

import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Digits, Mixture, Selection, Stream, Table
from jdl.data.sources import read_array
from jdl.errors import UserError


def rows(data, split="train"):
    return read_array(data.splits()[split], "index")


def arrays(**fields):
    index = np.arange(100)
    data = {"train": {"image": index[:, None], "label": index % 4, "index": index}}
    return Arrays(data, **fields)


def test_a_smaller_part_is_within_a_larger_and_other_splits_stay():
    whole, half, tenth = (arrays(train_fraction=part) for part in (1.0, 0.5, 0.125))
    assert [len(rows(data)) for data in (whole, half, tenth)] == [72, 36, 9]
    assert {*rows(tenth)} < {*rows(half)} < {*rows(whole)}
    for split in ("validation", "test"):
        np.testing.assert_array_equal(rows(tenth, split), rows(whole, split))


def test_parts_keep_classes_the_end_of_a_series_and_whole_groups(tmp_path):
    even = arrays(train_fraction=0.25, stratify=True)
    assert np.bincount(rows(even) % 4).tolist() == [4, 5, 4, 5] or len(rows(even)) == 18
    assert rows(arrays(train_fraction=0.125, ordered=True)).tolist() == [*range(63, 72)]
    file = tmp_path / "a.csv"
    lines = [f"{i},{i // 5},{i % 2}" for i in range(100)]
    file.write_text("\n".join(["x,g,y", *lines]))
    table = Table(str(file), "y", group="g", keep=("g",), train_fraction=0.5)
    counts = np.bincount(read_array(table.splits()["train"], "g").astype(int))
    assert set(counts) <= {0, 5}
    assert sum(counts) == 35


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: arrays(train_fraction=0.0), r"data.train_fraction is a share in \(0, 1\], not 0"),
        (lambda: arrays(train_fraction=0.001).splits(), "leaves none of 72 training examples"),
        (
            lambda: Selection(arrays(), classes=(0, 1), train_fraction=0.5),
            "no effect on Selection: set data.data.train_fraction",
        ),
        (
            lambda: Mixture((Stream("a", Digits()), Stream("b", Digits())), train_fraction=0.5),
            "no effect on Mixture",
        ),
    ],
)
def test_wrong_parts_are_named(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def test_a_curve_trains_on_each_part_for_as_many_steps(clouds, command, tmp_path):
    words = ("curve", clouds, "--fractions", "1", "0.2", "--seeds", "2", "--workdir", "c")
    code, out, err = command(*words, "--png", "c.png")
    assert (code, err) == (0, "")
    *_, header, first, second, last = out.splitlines()
    names = ["fraction", "examples", "steps", "test accuracy", "test loss", "seconds"]
    assert re.split("  +", header) == names
    assert first.split()[:3] == ["0.2", "12", "6"]
    assert second.split()[:3] == ["1", "58", "6"]
    assert last == "c holds the runs"
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "c/0.2/summary.json").read_text())
    spread = summary["metrics"]["test"]["accuracy"]
    assert f"{spread['mean']:.4f} [{spread['min']:.4f}, {spread['max']:.4f}]" in first
    run = jdl.open(tmp_path / "c/0.2/seed-1")
    assert (run.examples, run.experiment.hooks[2].every) == (12, 8)
    whole = json.loads((tmp_path / "c/1/seed-0/result.json").read_text())
    command("train", clouds, "--workdir", "plain")
    plain = json.loads((tmp_path / "plain/result.json").read_text())
    assert whole["params_sha256"] == plain["params_sha256"]
    code, again, _ = command(*words)
    assert again.splitlines()[-4:] == out.splitlines()[-4:], "finished runs are read"


def test_what_cannot_be_reduced_is_named(clouds, command, tmp_path):
    for words, complaint in (
        (["--fractions", "0.5", "0.5"], "a curve needs different fractions"),
        (["--fractions", "0"], "data.train_fraction is a share in (0, 1], not 0.0"),
        (["--fractions", "0.001"], "leaves none of 58 training examples: raise it"),
        (["--seeds", "0"], "seeds must be at least 1"),
    ):
        code, _, err = command("curve", clouds, *words)
        assert code == 2, words
        assert complaint in err
        assert not (tmp_path / "runs").exists()
