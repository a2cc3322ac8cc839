"""A prediction of each kind of task is explained: its scalar, its pictures, or a sentence."""

import re

import jax
import numpy as np
import pytest

import jdl
from jdl.explain import cards
from jdl.explain.explanations import make_request
from jdl.explain.target_names import default_target, parse_target
from jdl.explain.targets import Output
from jdl.report.explaining import explain_run
from jdl.trainer.training_run import TrainingRun
from tests.explain import kinds

TARGETS = {
    "classification": "[012]", "multi_label": "[012]", "adversarial": "[012]",
    "segmentation": "[012]", "detection": r"[01] at \(\d+, \d+\)", "variational": "-loss",
    "diffusion": "-loss", "encoder": "0", "masked_autoencoder": "0", "sounds": "[012]",
    "speech": r"'(low|high|)' at \d+", "words": "[01]", "masked_language": r".* at 0",
    "language": r"'.' at 1[01]", "translation": ".* at 0", "anomalies": "anomaly",
    "regression": "0", "forecast": "temperature", "panel": "sold, step 1",
    "recommendation": r"i\d\d", "next_items": r"i\d\d",
}  # fmt: skip
"""What is explained of each."""

FAST = ("encoder", "panel", "recommendation", "speech")
"""Those of which explanations differ most from a classifier's of images."""


def opened(kind, folder):
    """Returns a run before its first step, of which no parameter is 0."""
    run = TrainingRun(kinds.experiment(kind, folder), kind, folder / "run")

    def state():
        first = run.compiled.init(jax.random.key(0))
        moved = jax.tree.map(
            lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape).astype(x.dtype),
            first.params,
        )
        return first.replace(params=moved)

    run.set_lazy_state(state)
    return run


@pytest.mark.parametrize(
    "kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in TARGETS]
)
def test_predictions_of_each_task_are_explained_with_pictures(kind, tmp_path) -> None:
    run, out = opened(kind, tmp_path), tmp_path / "out"
    *lines, page = explain_run(run, (), ("gradient",), None, out, count=2, checks=False)
    assert page == out / "index.html"
    assert len(lines) == 2
    for line in lines:
        assert isinstance(line, dict)
        assert re.fullmatch(TARGETS[kind], str(line["target"]))
        assert np.isfinite(line["score"])
    maps = [np.load(file) for file in out.glob("*.npy")]
    assert maps
    assert all(np.isfinite(each).all() and len(each) == 2 for each in maps)
    assert any(each.any() for each in maps)
    assert "gradient: " in page.read_text()


def test_layers_that_begin_at_0_are_random_in_a_card(tmp_path) -> None:
    """Else the last layer of a forecaster, as new, would leave no map."""
    run = opened("panel", tmp_path)
    request, *_ = make_request(run, run.pipeline("train").examples(np.arange(2)))
    fresh = cards._fresh(request, jax.random.key(0))
    kernels = [leaf for leaf in jax.tree.leaves(fresh) if leaf.ndim > 1]
    assert kernels
    assert all(np.ptp(kernel) > 0 for kernel in kernels)


def test_an_output_is_explained_where_the_loss_couples_rows() -> None:
    class Coupled(jdl.tasks.Task):
        couples_rows = True

    assert default_target(Coupled()) == Output()


def test_a_task_of_several_players_is_a_sentence(tmp_path) -> None:
    run = opened("gan", tmp_path)
    with pytest.raises(jdl.UserError, match=r"several players and predicts no scalar"):
        make_request(run, run.pipeline("train").examples(np.arange(2)))


def test_a_scalar_that_there_is_not_is_a_sentence(tmp_path) -> None:
    run = opened("encoder", tmp_path)
    rows = run.pipeline("train").examples(np.arange(2))
    with pytest.raises(jdl.UserError, match=r"depends on the other rows.*leave --target out"):
        make_request(run, rows, "loss")[0].scores()
    with pytest.raises(jdl.UserError, match=r"no output '9' to explain .there are 0 to 5"):
        make_request(run, rows, "9")
    with pytest.raises(jdl.UserError, match="has scalars by number"):
        parse_target(kinds.KINDS["speech"](tmp_path)["task"], "low")
