"""Explanations of trained runs: the command, its files, analyses of the run and its data."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import explain as ex
from jdl.cli.main import main
from jdl.data import Table
from jdl.explain import concepts, tables, training
from jdl.explain.explanations import make_request
from jdl.models import MLP
from jdl.optimizers import Adam
from jdl.tasks import Classification
from jdl.trainer.opening import checkpoint_states
from tests.explain.corners import corners
from tests.runs import make_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    file = jdl.load(Path(__file__).with_name("corners.py"))
    workdir = tmp_path_factory.mktemp("explain") / "run"
    return jdl.train(file.experiment, workdir, file=file)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The folder of the command's page, and its lines."""
    return explained(run, tmp_path_factory.mktemp("page"), "gradient", "grad_cam")


def explained(run, out, *methods, options=()):
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        arguments = ["explain", str(run.workdir), "--out", str(out), "--count", "4"]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = main([*arguments, *options, "--method", *methods])
        assert code == 0, errors.getvalue()
    *lines, last = stream.getvalue().splitlines()
    assert last == str(out / "index.html")
    return out, [json.loads(line) for line in lines]


def test_the_command_writes_a_page_with_a_card_for_each_explanation(page) -> None:
    out, lines = page
    text = (out / "index.html").read_text()
    assert "Right" in text
    assert "Uncertain" in text
    assert "random deletion" in text
    each = [line for line in lines if "example" in line]
    assert len(each) == 2 * 4
    assert {"deletion", "randomization", "infidelity", "sensitivity"} <= each[0]["card"].keys()
    assert len(list(out.glob("*.png"))) == 2 * 4
    assert np.load(out / "gradient-image.npy").shape == (4, 8, 8)


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


def test_the_same_command_writes_the_same_bytes(run, page, tmp_path) -> None:
    out, _ = explained(run, tmp_path, "gradient", "grad_cam", options=["--without-cards"])
    files = sorted(out.glob("*.npy"))
    assert len(files) == 2
    for file in files:
        assert file.read_bytes() == (page[0] / file.name).read_bytes()
    again, _ = explained(run, tmp_path / "again", "gradient", options=["--without-cards"])
    for file in again.glob("*.png"):
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_analyses_of_a_run_print_lines_and_add_sections(run, tmp_path) -> None:
    out, lines = explained(
        run, tmp_path, "filters", "top_examples", "examples=20", "activation_maximization",
        "steps=3", "trac_in", "nearest_examples", "counterfactual", options=["--without-cards"],
    )  # fmt: skip
    named = {line["method"] for line in lines}
    assert len(named) == 6
    first = next(line for line in lines if line["method"] == "filters")
    assert first["filters"] == 4
    changed = [line for line in lines if line["method"] == "counterfactual"]
    assert all(line["changed"] and line["becomes"] in (0, 1, 2) for line in changed)
    assert "TracIn" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gradeint"], "did you mean 'gradient'"),
        (["smooth_grad", "sample=3"], "did you mean 'samples'"),
        (["steps=3"], "name the method before its option"),
        (["grad_cam", "layer=Conv_9"], "did you mean 'Conv_0'"),
        (["grad_cam", "layer=logits"], "neither pixels"),
        (["permutation_importance"], "one number for each column"),
        (["attention_rollout"], "needs layers of jdl.layers.Attention"),
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


def test_trac_in_is_the_sum_over_checkpoints(run, tmp_path) -> None:
    rows, indices = run.pipeline("train").examples(np.arange(3)), np.arange(5)
    found = training.trac_in(run, indices, rows, modules=("logits",))
    train = run.pipeline("train").examples(indices)
    expected, steps = np.zeros((3, 5)), []
    for step, state in checkpoint_states(run):

        def gradient(image, label, state=state):
            def loss(params):
                logits = run.experiment.model.apply({"params": params}, jnp.asarray(image[None]))[0]
                return -jax.nn.log_softmax(logits)[label]

            own = jax.grad(loss)(state.params)["logits"]
            return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(own)])

        each = [
            np.stack([gradient(*pair) for pair in zip(a["image"], a["label"], strict=True)])
            for a in (rows, train)
        ]
        expected += 1e-2 * each[0] @ each[1].T
        steps.append(step)
    assert list(found.steps) == steps == [20, 40, 60]
    assert found.of_rows is not None
    np.testing.assert_allclose(found.of_rows, expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found.own[:3], np.diag(expected), rtol=1e-3, atol=1e-7)
    shutil.copytree(run.workdir, tmp_path / "copy")
    for name in ("20.0", "40.0"):
        shutil.rmtree(tmp_path / "copy" / "checkpoints" / name)
    with pytest.raises(jdl.UserError, match=r"checkpoints of several steps.*of step 60 alone"):
        training.trac_in(jdl.open(tmp_path / "copy", run.experiment), indices)


def test_a_class_depends_on_the_concept_that_makes_it_and_on_no_random_one(run) -> None:
    def of(images, target):
        count = len(images)
        return make_request(run, {"image": images, "label": np.zeros(count, np.int32)}, target)[0]

    images = corners(240, 3)
    bright = images["image"][images["label"] == 1][:24]
    rest = images["image"][images["label"] != 1]
    others = of(rest[60:140], "1")

    def test(concept, target):
        given = of(rest[:20], target), of(concept, target), others
        return concepts.concept_activation(*given, "Conv_0")

    own, other, random = test(bright, "1"), test(bright, "0"), test(rest[20:60], "1")
    assert own.accuracy > 0.9
    assert own.score > 0.9
    assert other.score < 0.2
    assert own.p_value < 0.05
    assert other.p_value < 0.05
    assert 0.25 < random.score < 0.75
    assert random.p_value > 0.05
    assert random.accuracy < 0.75


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
