"""Run directories are complete: opened elsewhere, without their data, by other processes."""

import json
import shutil
import subprocess
import sys

import flax.linen as nn
import numpy as np
import optax
import pandas as pd
import pytest

import jdl
from jdl import UserError
from jdl.cli.main import main
from jdl.data import Saved
from jdl.data.splits import Splits
from jdl.files import RunDirectory, write_json
from jdl.models import MLP
from jdl.optimizers import Adam
from tests.explain import kinds

X = np.random.default_rng(0).normal(size=(40, 3))
NAMES = np.where(X[:, 0] > 0, "yes", "no")

TABLE = """
from pathlib import Path

from jdl import Experiment
from jdl.data import Table
from jdl.models import MLP

experiment = Experiment(
    model=MLP(widths=(4,), features=3),
    data=Table(str(Path("FOLDER") / "t.csv"), target="kind"),
    epochs=3,
    batch_size=8,
    hooks=(),
)
"""


def write_table(path, rows, names=("ant", "bee", "cow"), seed=0):
    generator = np.random.default_rng(seed)
    lines = ["a,b,kind"]
    for row in range(rows):
        a, b = generator.normal(size=2)
        lines.append(f"{a:.4f},{b + row % 3:.4f},{names[row % 3]}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def table_run(tmp_path, capsys):
    """A run on a table, new rows to predict, and what it predicted of them."""
    write_table(tmp_path / "t.csv", 60)
    write_table(tmp_path / "new.csv", 9, seed=1)
    (tmp_path / "own.py").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    assert main(["train", str(tmp_path / "own.py"), "--workdir", str(tmp_path / "run")]) == 0
    return tmp_path, predicted(tmp_path / "run", tmp_path / "new.csv", capsys)


def predicted(run, file, capsys):
    capsys.readouterr()
    assert main(["predict", str(run), str(file)]) == 0
    return capsys.readouterr().out


def test_a_run_predicts_where_its_data_is_not(table_run, capsys):
    folder, before = table_run
    (folder / "t.csv").unlink()
    shutil.move(folder / "run", folder / "elsewhere")
    assert predicted(folder / "elsewhere", folder / "new.csv", capsys) == before
    assert main(["export", str(folder / "elsewhere"), str(folder / "a.stablehlo")]) == 0
    assert main(["evaluate", str(folder / "elsewhere")]) == 2
    assert "t.csv" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("dog", "elk", "fly")])
def test_a_run_predicts_alike_once_its_data_has_changed(names, table_run, capsys):
    folder, before = table_run
    write_table(folder / "t.csv", 90, names=names, seed=2)
    assert predicted(folder / "run", folder / "new.csv", capsys) == before
    assert main(["evaluate", str(folder / "run")]) == 2
    error = capsys.readouterr().err
    assert "changed since it began" in error or "'dog'" in error


def test_an_evaluation_of_changed_data_has_to_be_allowed(table_run, capsys):
    folder, _ = table_run
    write_table(folder / "t.csv", 90, seed=2)
    assert main(["evaluate", str(folder / "run")]) == 2
    assert "--allow-changed-data" in capsys.readouterr().err
    assert main(["evaluate", str(folder / "run"), "--allow-changed-data"]) == 0
    with pytest.raises(UserError, match="changed since it began"):
        jdl.open(folder / "run").evaluate()
    assert jdl.open(folder / "run", allow_changed_data=True).evaluate()


def test_missing_data_is_refused_with_the_field_that_names_its_place(table_run, capsys):
    folder, _ = table_run
    (folder / "t.csv").unlink()
    assert main(["evaluate", str(folder / "run")]) == 2
    assert "(if the data is elsewhere, name the place with --data.path)" in capsys.readouterr().err


def test_another_place_of_the_same_data(table_run, capsys):
    folder, _ = table_run
    capsys.readouterr()
    assert main(["evaluate", str(folder / "run")]) == 0
    before = capsys.readouterr().out
    shutil.move(folder / "t.csv", folder / "moved.csv")
    command = ["evaluate", str(folder / "run"), "--data.path", str(folder / "moved.csv")]
    assert main(command) == 0
    assert capsys.readouterr().out == before


def test_a_fit_is_opened_from_its_directory(tmp_path):
    run = jdl.fit(
        MLP(widths=(4,), features=2), X, NAMES, epochs=2, optimizer=optax.adam(0.1), hooks=(),
        workdir=tmp_path / "run",
    )  # fmt: skip
    shutil.move(tmp_path / "run", tmp_path / "moved")
    again = jdl.open(str(tmp_path / "moved"))
    np.testing.assert_array_equal(again.predict(X), run.predict(X))
    assert again.experiment.model == run.experiment.model
    assert again.experiment.data.output_names() == ("no", "yes")
    assert again.result["metrics"] == run.result["metrics"]
    with pytest.raises(UserError, match="passed from Python and are not kept"):
        again.evaluate("train")
    script = "import jdl, sys; print(jdl.open(sys.argv[1]).predict([[1.0, 2.0, 3.0]]).tolist())"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "moved")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    np.testing.assert_allclose(eval(ended.stdout), run.predict([[1.0, 2.0, 3.0]]), rtol=1e-6)


def test_a_module_that_cannot_be_imported_has_to_be_passed(tmp_path):
    class Local(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    run = jdl.fit(Local(2), X, NAMES, epochs=1, hooks=(), workdir=tmp_path / "run")
    with pytest.raises(UserError, match=r"model was .*Local.*: pass it, as in jdl\.open\(.*model="):
        jdl.open(tmp_path / "run")
    again = jdl.open(tmp_path / "run", model=Local(2))
    np.testing.assert_array_equal(again.predict(X), run.predict(X))
    with pytest.raises(UserError, match=r"other settings: model\.features: 2 -> 3"):
        jdl.open(tmp_path / "run", model=Local(3))


def test_raw_columns_are_not_taken_for_the_scaled_ones_of_a_table(table_run):
    folder, _ = table_run
    run = jdl.open(folder / "run")
    frame = pd.read_csv(folder / "new.csv")[["a", "b"]]
    with pytest.raises(UserError, match=r"a frame holds them as they are: save .*x\.to_csv"):
        run.predict(frame)
    for raw in (frame.to_numpy(), frame.to_numpy().tolist()):
        with pytest.raises(UserError, match=r"array may hold either: .* from \{'x': x\}"):
            run.predict(raw)
    frame.to_csv(folder / "frame.csv", index=False)
    read = run.experiment.data.reader()
    np.testing.assert_array_equal(
        run.predict(read(folder / "frame.csv")), run.predict(read(folder / "new.csv"))
    )


def test_a_directory_of_several_runs_names_one(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(UserError, match=r"holds several runs: name one, such as .*seed-0"):
        jdl.open(tmp_path)


ARRAYS = """
import numpy as np

from jdl import Experiment
from jdl.data import Arrays
from jdl.models import MLP

held = np.load("FOLDER/held.npz")
data = Arrays({"train": {"image": held["x"], "label": held["y"]}})
experiment = Experiment(MLP(widths=(4,), features=2), data=data, epochs=1, hooks=())
"""


def test_arrays_that_an_experiment_file_reads_may_change_or_vanish(tmp_path, capsys):
    held, labels = tmp_path / "held.npz", (X[:, 0] > 0).astype(int)
    np.savez(held, x=X, y=labels)
    (tmp_path / "own.py").write_text(ARRAYS.replace("FOLDER", str(tmp_path)))
    assert main(["train", str(tmp_path / "own.py"), "--workdir", str(tmp_path / "run")]) == 0
    expected = jdl.open(tmp_path / "run").predict(X)

    np.savez(held, x=np.r_[X, X], y=np.r_[labels, 1 - labels])
    np.testing.assert_array_equal(jdl.open(tmp_path / "run").predict(X), expected)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "changed since it began" in capsys.readouterr().err
    # A finished run is not taken for one on other data.
    assert main(["train", str(tmp_path / "own.py"), "--workdir", str(tmp_path / "run")]) == 2
    assert "data.arrays.train.image: float32" in capsys.readouterr().err.replace("64", "32")

    held.unlink()
    np.testing.assert_array_equal(jdl.open(tmp_path / "run").predict(X), expected)


def test_an_open_run_has_the_averaged_weights(tmp_path):
    optimizer = Adam(0.1, ema_decay=0.5)
    run = jdl.fit(nn.Dense(2), X, NAMES, epochs=2, optimizer=optimizer, hooks=(), workdir=tmp_path)
    again = jdl.open(tmp_path)
    np.testing.assert_array_equal(again.params["kernel"], run.params["kernel"])
    assert (np.asarray(again.params["kernel"]) != np.asarray(run.state.params["kernel"])).any()


def test_a_report_without_its_data_names_what_is_left_out(table_run, capsys):
    folder, _ = table_run
    (folder / "t.csv").unlink()
    assert main(["report", str(folder / "run")]) == 0
    page = (folder / "run" / "report" / "index.html").read_text()
    assert "Baselines and the sections on predictions need the data of the run" in page
    assert "t.csv" in page


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_data_is_the_same_after_its_record_is_read(kind, tmp_path):
    """Else a run that is opened would refuse its own data as changed."""
    data = kinds.experiment(kind, tmp_path).data
    fitted = json.loads(json.dumps(data.fit()))
    if data.has_tokenizer:
        write_json(RunDirectory(tmp_path).tokenizer, json.loads(data.tokenizer().to_json()))
        fitted["tokenizer"] = Saved(str(tmp_path)).build(()).to_json()
    prints = Splits(data).fingerprints()
    again = kinds.experiment(kind, tmp_path).data
    assert Splits(again.with_fitted(fitted)).fingerprints() == prints
