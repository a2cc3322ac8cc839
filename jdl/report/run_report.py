"""HTML report of a run, from its directory and its model's predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.experiment_file import documentation
from jdl.data import Series, Words
from jdl.errors import UserError
from jdl.files import RunDirectory, read_rows
from jdl.inference.generate import generate
from jdl.report import classification, dense, learning_curves, plots, run_details, samples
from jdl.report.baselines import Baseline
from jdl.report.page import Folder, Html, html, paragraph, scores_table, section, table
from jdl.report.run_baselines import baselines_of, held_out
from jdl.tasks import (
    BinaryClassification,
    Classification,
    Detection,
    Forecast,
    LanguageModeling,
    Segmentation,
)
from jdl.trainer.opening import restore_run
from jdl.trainer.record import read_run
from jdl.trainer.run import Run


def write_report(directory: Path, out: Path | None = None, experiment: Path | None = None) -> Path:
    """Writes the report of a run as an HTML page, with its figures beside it.

    Args:
      directory: of the run; its experiment.py is executed.
      out: where to write; None for `report` in the run directory.
      experiment: the caller's own experiment file, to be used instead.

    Returns:
      The page.

    Raises:
      UserError: it is no run directory, holds no checkpoint, or Matplotlib is missing.
    """
    plots.require()
    files = RunDirectory(directory)
    summary = None if files.experiment.exists() else files.read_summary()
    if summary is not None:
        first = summary["seeds"][0]
        raise UserError(
            f"{directory} contains the runs of several seeds: report on one, as {directory}/seed-"
            f"{first}"
        )
    recorded = read_run(directory, experiment)
    run = restore_run(directory, recorded.experiment)
    rows, folder = read_rows(files.metrics), Folder(out or directory / "report")
    missing = _why_data_is_missing(run)
    beside = () if missing else baselines_of(run)
    about = documentation(recorded.file.path).split("\n")[0] if recorded.file else ""
    return folder.page(
        "index.html",
        recorded.name,
        paragraph(about, quiet=True),
        scores(run, rows, beside),
        _learning(run, rows, beside, folder),
        *samples.sections(run),
        *([missing] if missing else _of_the_task(run, folder)),
        run_details.parameters(run),
        run_details.time_and_memory(run.result, rows),
        run_details.reproduction(directory, recorded, run.result),
    )


def _why_data_is_missing(run: Run) -> Html | None:
    """A section that names the sections left out where the data cannot be read; else None."""
    try:
        _ = run.data
    except UserError as error:
        text = f"Baselines and the sections on predictions need the data of the run: {error}."
        return section("Predictions", paragraph(text))
    return None


def scores(run: Run, rows: Sequence[Mapping[str, Any]], beside: Sequence[Baseline]) -> Html:
    """Scores by split, then those of the baselines."""
    metrics, parts = run.result.get("metrics"), []
    if metrics is None:
        metrics = {row["split"]: row["metrics"] for row in rows if row["split"] != "skipped"}
        parts.append(paragraph("The run has not ended: these are its last rows."))
    parts.append(scores_table(metrics))
    if run.result.get("train_metrics") == "running":
        parts.append(
            paragraph("train: running mean over the steps of the last epoch, not an evaluation.")
        )
    if beside:
        split = held_out(run)
        reached = metrics.get(split, {})
        mine = [float(reached[b.metric]) for b in beside[:1] if b.metric in reached]
        lines = [("this model", beside[0].metric, value, "") for value in mine]
        lines += [(b.name, b.metric, b.value, b.note) for b in beside]
        parts.append(table((f"on the {split} split", "metric", "score", ""), lines))
        ahead = [b.name for b in beside if not all(map(b.beaten_by, mine))]
        if mine and ahead:
            parts.append(paragraph(f"It is no better than: {', '.join(ahead)}."))
    return section("Metrics and baselines", *parts)


def _learning(
    run: Run, rows: Sequence[Mapping[str, Any]], beside: Sequence[Baseline], folder: Folder
) -> Html:
    text = learning_curves.verdict(rows, run.result, beside[0] if beside else None)
    lines = learning_curves.curves(rows)
    if not any(len(steps) > 1 for named in lines.values() for steps, _ in named.values()):
        interval = run.experiment.runtime.log_every
        few = f"There are too few rows to draw; runtime.log_every is {interval}."
        return section("Learning curves", paragraph(text), paragraph(few))
    picture = folder.picture("curves", plots.curves(lines), "Learning curves")
    return section("Learning curves", paragraph(text), picture)


def _of_the_task(run: Run, folder: Folder) -> list[Html]:
    """The sections specific to the task."""
    task, data = run.experiment.task, run.experiment.data
    if isinstance(task, (Classification, BinaryClassification)):
        words = data.vocabulary_words() if isinstance(data, Words) else ()
        predictions = classification.predict_held_out(run)
        found = classification.sections(run, predictions, folder, words)
        return [*found, classification.influences(run, predictions, words)] if words else found
    if isinstance(task, (Detection, Segmentation)):
        return dense.sections(run, folder)
    if isinstance(task, Forecast) and isinstance(data, Series):
        return [_forecasts(run, data, folder)]
    if isinstance(task, LanguageModeling):
        return _writing(run)
    return []


def _writing(run: Run) -> list[Html]:
    """Text generated by a language model whose data has a tokenizer."""
    try:
        tokenizer = run.experiment.data.tokenizer()
    except UserError:
        return []
    written = "".join(text for (text,) in generate(run, tokenizer, None, 200))
    about = "200 sampled tokens, seed 0."
    return [
        section("Generated text", paragraph(about), html('<pre class="sample">{}</pre>', written))
    ]


def _forecasts(run: Run, data: Series, folder: Folder) -> Html:
    split = held_out(run)
    pipeline = run.data.pipeline(split)
    rows = pipeline.examples(np.arange(len(pipeline)))
    names = data.targets or tuple(data.read()[0])
    figure = plots.forecasts(rows["value"], run.predict_rows(rows), names)
    about = f"On the {split} split, in the unit of the series, {data.horizon} ahead."
    return section("Forecasts", paragraph(about), folder.picture("forecast", figure, about))
