"""`jdl explain`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.files import to_json


def explain(
    directory: RunDirectory,
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[FILE...]", help_behavior_hint="(default: none)")
    ],
    /,
    method: tuple[str, ...] = ("integrated_gradients",),
    target: str | None = None,
    out: Path | None = None,
    split: str | None = None,
    count: int = 9,
    without_cards: bool = False,
    experiment: OwnFile = None,
) -> None:
    """Explain predictions, or what a run has learned; writes a page, prints JSON lines.

    Without a FILE, examples of a split are explained: of a classifier some on which it is right,
    wrong and uncertain. Each method has a card: what was checked of its attributions on this model.
    Methods are named with their options behind them, such as
    `--method gradient grad_cam layer=Conv_1 integrated_gradients baseline.kind=blur`.

    Args:
        files: to explain the predictions of, read as by `jdl predict`, or folders of such files.
        method: gradient, input_x_gradient, integrated_gradients, smooth_grad, grad_cam, deep_lift,
            occlusion, attention_rollout, kernel_shap, shapley_sampling, lime; or about the run:
            filters, top_examples, activation_maximization, permutation_importance,
            partial_dependence, trac_in, nearest_examples, concept_activation, counterfactual.
        target: scalar to explain, such as a class, or `loss` (default: that of the prediction).
        out: folder of index.html and its pictures (default: explanations in the run directory).
        split: whose examples are explained (default: validation, or train without it).
        count: number of examples at most.
        without_cards: leave the cards out, which take several times the time of the attributions.
    """
    from jdl.inference.predict import expand
    from jdl.report.explaining import explain_run
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    out = directory / "explanations" if out is None else out
    paths = tuple(expand(files))
    cards = not without_cards
    for line in explain_run(run, paths, method, target, out, split, count, cards):
        print(to_json(line) if isinstance(line, dict) else line, flush=True)
