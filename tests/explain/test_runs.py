"""Explanations of trained runs: the command, its files, analyses of the run and its data."""

from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl import explain as ex
from jdl.cli.main import main
from jdl.data import Table
from jdl.explain import tables
from jdl.explain.explanations import make_request
from jdl.models import MLP
from jdl.optimizers import Adam
from jdl.tasks import Classification
from tests.explain.corners import corners
from tests.runs import make_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    file = jdl.load(Path(__file__).with_name("corners.py"))
    workdir = tmp_path_factory.mktemp("explain") / "run"
    return jdl.train(file.experiment, workdir, file=file)


def test_a_map_finds_the_corner_that_makes_the_class(run) -> None:
    examples = corners(12, 2)
    boxes = np.array([(0, 0, 3, 3), (5, 0, 8, 3), (0, 5, 3, 8)], np.float32)
    examples["boxes"] = boxes[examples["label"]][:, None]
    examples["boxes_mask"] = np.ones((12, 1), bool)
    found = ex.explain(run, {**examples, "labels": examples["label"][:, None]})
    card = found.card
    assert card is not None
    assert card.inside is not None
    assert card.area is not None
    assert np.nanmean(card.inside) > 0.5 > 2 * np.nanmean(card.area)
    assert card.completeness is not None
    assert card.completeness.max() <= 0.01


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gradeint"], "did you mean 'gradient'"),
        (["smooth_grad", "sample=3"], "did you mean 'samples'"),
        (["steps=3"], "name the method before its option"),
    ],
)
def test_a_wrong_method_is_a_sentence(run, tmp_path, capsys, words, sentence) -> None:
    command = ["explain", str(run.workdir), "--out", str(tmp_path), "--count", "2"]
    assert main([*command, "--without-cards", "--method", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_target_is_a_sentence(run) -> None:
    with pytest.raises(jdl.UserError, match=r"no class '7' to explain .there are 0 to 2"):
        make_request(run, corners(2, 0), "7")
    request, names, _ = make_request(run, corners(2, 0), "1")
    assert names == ["1", "1"]
    scores = request.scores()
    loss, _, _ = make_request(run, corners(2, 0), "loss")
    assert loss.scores().shape == scores.shape


def test_columns_of_a_table(tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows = ["size,color,noise,kind"]
    for _ in range(200):
        size, color, noise = rng.normal(10, 3), rng.choice(["red", "blue"]), rng.normal()
        rows.append(
            f"{size:.3f},{color},{noise:.3f},{'a' if size + 3 * (color == 'red') > 12 else 'b'}"
        )
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    experiment = make_experiment(
        model=MLP(widths=(8,), features=2),
        task=Classification(inputs="x", targets="y"),
        data=Table(str(tmp_path / "rows.csv"), "kind"),
        optimizer=Adam(3e-2),
        steps=60,
        batch_size=20,
    )
    run = jdl.train(experiment, workdir=tmp_path / "run")
    examples = run.pipeline("train").examples(np.arange(100))
    found = tables.permutation_importance(run, examples)
    assert found.names == ["size", "color", "noise"]
    assert found.mean[0] > found.mean[1] > found.mean[2] + 0.05
    request, _, _ = make_request(run, examples, "a")
    assert request.num_features == 3
    size = tables.partial_dependence(run, request, "size", points=5)
    assert (np.diff(size.mean) > 0).all()
    assert 0 < float(size.values[0]) < 10 < float(size.values[-1]) < 25
    color = tables.partial_dependence(run, request, "color")
    assert list(color.values) == ["blue", "red"]
    assert color.mean[1] > color.mean[0]
    shap = ex.explain(run, {k: v[:2] for k, v in examples.items()}, ex.KernelSHAP())
    assert shap.card is not None
    assert shap.card.failures == () or "random last layers" not in shap.card.failures[0]
    with pytest.raises(jdl.UserError, match=r"no column 'colour'.*did you mean 'color'"):
        tables.partial_dependence(run, request, "colour")
