"""Translation by a command, and its scores in the table of results."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.results import row
from jdl.config.experiment_file import expectation
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.inference.translate import check_translation_run
from jdl.tasks import LanguageModeling
from tests.translations import LSTM, TEXTS, experiment

FILE = '''"""Translates a little.

Expect: test bleu 33.5 (2 seeds, min 33.1), 900 s, 2 CPU cores
"""

from jdl import Experiment
from jdl.data import Pairs, PairTable
from jdl.data.tokenizers import BPE
from jdl.models import LSTMEncoderDecoder
from jdl.tasks import Translation

table = PairTable("pairs.tsv", validation_fraction=0.0, test_fraction=0.25)
experiment = Experiment(
    model=LSTMEncoderDecoder(vocab_size=300, num_layers=1, hidden_size=8),
    task=Translation(max_extra_tokens=3),
    data=Pairs(table, encoding=BPE(vocab_size=300), max_source_length=40, max_target_length=60),
    steps=2, batch_size=2, hooks=(),
)
'''


def test_texts_and_lines_are_translated_by_a_command(command, tmp_path, monkeypatch):
    table = "".join("\t".join(pair) + "\n" for pair in [("en", "de"), *TEXTS])
    (tmp_path / "pairs.tsv").write_text(table)
    (tmp_path / "little.py").write_text(FILE)
    code, out, _ = command("train", "little.py", "--workdir", "run")
    assert code == 0
    assert "bleu       nrefs:1|case:mixed" in out
    code, out, err = command("evaluate", "run")
    scores = json.loads(out)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (code, err) == (0, "")
    assert scores.pop("signatures") == written["signatures"]
    assert scores == {"split": "test", **written["metrics"]["test"]}

    code, out, err = command("translate", "run", "--text", "A dog runs.", "Two men\n sit.")
    assert (code, err) == (0, "")
    first, second, rest = out.split("\n")
    assert rest == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("Two men\nA dog runs.\n" * 3))
    lines = command("translate", "run")[1].split("\n")
    assert lines == [lines[0], first] * 3 + [""]
    assert second != ""
    long = "A dog runs after two men. " * 8  # more tokens than a training source
    code, out, err = command("translate", "run", "--text", "A dog runs.", long)
    assert (code, err) == (0, "")
    assert out.split("\n")[0] == first
    for text, complaint in (
        ((" ",), "text 1 is empty: there is nothing to translate"),
        (("A dog.", ""), "text 2 is empty"),
        (("A dog.", "a \udcff"), "a text is not UTF-8: "),
    ):
        code, _, err = command("translate", "run", "--text", *text)
        assert code == 2
        assert err.startswith(f"jdl: {complaint}")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert command("translate", "run")[2].startswith("jdl: there is no text")


def test_a_run_of_another_task_does_not_translate():
    data = Arrays({"train": {"tokens": np.zeros((2, 3), int)}})
    other = experiment(LSTM, task=LanguageModeling(), data=data)
    with pytest.raises(UserError, match="runs/x holds a run of LanguageModeling on Arrays: only"):
        check_translation_run(Path("runs/x"), other)


def test_more_bleu_is_better_in_the_table_of_results(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "little.py"
    path.write_text(FILE)
    monkeypatch.chdir(tmp_path)
    promise = expectation(path)
    assert promise is not None
    assert (promise.metric, promise.mean, promise.least) == ("test bleu", 33.5, 33.1)
    for seed, bleu in enumerate((33.1, 33.9)):
        folder = tmp_path / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        result = {"experiment": "little", "metrics": {"test": {"bleu": bleu}}, "seconds": 900}
        data = {"train": {"source": "pairs.tsv", "count": 3}}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "environment.json").write_text(json.dumps({"data": data}))
    assert row(tmp_path / "runs").split(" | ")[2:5] == ["test bleu", "33.5000", "33.1000"]
