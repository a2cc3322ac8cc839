"""Sections and lines about the analyses that `jdl explain` names."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.errors import UserError
from jdl.explain import analysis, concepts, learned, tables, training
from jdl.explain.explanations import make_request, read_files
from jdl.explain.features import table_columns
from jdl.explain.targets import Class, number
from jdl.inference.predict import expand
from jdl.media import Images
from jdl.report import attributions, plots
from jdl.report.explanations import Chosen
from jdl.report.page import Folder, Html, html, join, paragraph, section
from jdl.report.run_baselines import chunks
from jdl.trainer.run import Run
from jdl.typing import Json

Lines = list[dict[str, Json]]


def report_analysis(
    run: Run, asked: analysis.Analysis, chosen: Chosen, target: str | None, out: Path
) -> tuple[Lines, Html]:
    """Analyzes a run.

    Args:
      run: that was restored.
      asked: the analysis.
      chosen: the examples that are explained.
      target: name of the scalar; None: that of the prediction.
      out: folder of the pictures.

    Returns:
      JSON objects, and a section of the page.

    Raises:
      UserError: the analysis does not apply to the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    kinds: dict[type, Any] = {
        analysis.Filters: _filters,
        analysis.TopExamples: _top_examples,
        analysis.ActivationMaximization: _maximized,
        analysis.PermutationImportance: _importance,
        analysis.PartialDependence: _dependence,
        analysis.TracIn: _trac_in,
        analysis.NearestExamples: _nearest,
        analysis.ConceptActivation: _concept,
        analysis.Counterfactual: _counterfactual,
    }
    return kinds[type(asked)](run, asked, chosen, target, Folder(out))


def _filters(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del asked, chosen, target
    path, kernels = learned.filters(run.params)
    grid = np.stack([attributions.as_image(each) for each in kernels])
    picture = _images(folder, "filters", grid)
    lines = [{"layer": path, "filters": len(kernels), "size": list(kernels.shape[1:3])}]
    return lines, section("First filters", paragraph(f"Kernels of {path}."), picture)


def _top_examples(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del target
    examples, _ = _spread(run, "validation" if "validation" in run.splits else "train", asked)
    request, _, _ = make_request(run, examples)
    found = learned.top_examples(request, asked.layer, asked.channels)
    ((_, x),) = request.x.items() if len(request.x) == 1 else ((None, None),)
    lines: Lines = [
        {"layer": found.layer, "channel": int(c), "examples": i.tolist(), "values": _round(v)}
        for c, i, v in zip(found.channels, found.indices, found.values, strict=True)
    ]
    shown = [_channel(folder, found, row, x) for row in range(len(found.channels))]
    del chosen
    return lines, section("Top examples", paragraph(f"Of {found.layer}."), *shown)


def _channel(folder: Folder, found: Any, row: int, x: Any) -> Html:
    title = f"channel {found.channels[row]}"
    if x is None or x.ndim != 4:
        return paragraph(f"{title}: examples {', '.join(map(str, found.indices[row]))}")
    images = np.stack([attributions.as_image(x[i]) for i in found.indices[row]])
    name = f"top-{found.layer}-{found.channels[row]}"
    return join([paragraph(title, quiet=True), _images(folder, name, images)])


def _maximized(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del target
    request, _, _ = make_request(run, chosen.examples)
    layer, found, values = learned.maximize(request, asked.layer, asked.channels, asked.steps)
    known = learned.activations(request, layer)
    known = known.reshape(len(known), -1, known.shape[-1]).mean(1).max(0)
    channels = asked.channels or range(len(found))
    lines: Lines = [
        {"layer": layer, "channel": c, "mean": _round(v), "largest_of_examples": _round(known[c])}
        for c, v in zip(channels, values, strict=True)
    ]
    picture = html("{}", "")
    if found.ndim == 4:
        images = np.stack([attributions.as_image(each) for each in found])
        picture = _images(folder, f"maximized-{layer}", images)
    about = f"Inputs that excite channels of {layer}, from noise."
    return lines, section("Activation maximization", paragraph(about), picture)


def _importance(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del chosen, target
    split = "validation" if "validation" in run.splits else "train"
    examples, _ = _spread(run, split, asked)
    found = tables.permutation_importance(run, examples, asked.metric, asked.repeats)
    lines: Lines = [
        {"column": name, "metric": found.metric, "fall": _round(mean), "deviation": _round(spread)}
        for name, mean, spread in zip(found.names, found.mean, found.deviation, strict=True)
    ]
    title = f"Fall of {found.metric} ({found.score:.4f} on {split}) where a column is permuted"
    plots.require()
    figure = attributions.bars(found.names, found.mean, title)
    picture = folder.picture("permutation_importance", figure, title)
    return lines, section("Permutation importance", picture)


def _dependence(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del chosen
    split = "validation" if "validation" in run.splits else "train"
    examples, _ = _spread(run, split, asked)
    task, names = run.experiment.task, run.experiment.data.output_names()
    if target is None and hasattr(task, "class_weights"):
        target = names[-1] if names else "1"
    request, named, _ = make_request(run, examples, target)
    _, _, known = tables.columns(run, request.x)
    plots.require()
    lines: Lines = []
    pictures = []
    for column in asked.columns or known[:6]:
        found = tables.partial_dependence(run, request, column)
        values = [v if isinstance(v, str) else _round(v) for v in found.values]
        lines.append({"column": found.name, "values": values, "mean": _round(found.mean)})
        figure = attributions.dependence(found.name, found.values, found.mean, found.each)
        pictures.append(folder.picture(f"dependence-{found.name}", figure, found.name))
    about = f"The mean of the target ({named[0]}) where all rows have a value of the column."
    return lines, section("Partial dependence", paragraph(about), *pictures)


def _trac_in(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del target
    _, indices = _spread(run, "train", asked)
    task = run.experiment.task
    rows = chosen.examples if asked.of_rows and task.targets in chosen.examples else None
    found = training.trac_in(run, indices, rows, asked.modules)
    order = np.argsort(-found.own, kind="stable")[:12]
    first: dict[str, Json] = {"checkpoints": list(found.steps), "examples": len(indices)}
    lines: Lines = [{**first, "largest_self_influence": found.indices[order].tolist()}]
    if asked.marked is not None:
        lines.append(_ranking(run, asked.marked, found))
    about = f"Over the checkpoints of the steps {', '.join(map(str, found.steps))}."
    parts = [paragraph(about), *_strip(folder, run, "self-influence", found.indices[order])]
    for row, influence in enumerate(found.of_rows if found.of_rows is not None else ()):
        best = np.argsort(-influence, kind="stable")
        helped, hurt = (found.indices[i].tolist() for i in (best[:6], best[::-1][:6]))
        caption = chosen.captions[row]
        lines.append({"example": caption, "proponents": helped, "opponents": hurt})
        parts.append(paragraph(f"{caption}: proponents, then opponents"))
        parts += _strip(folder, run, f"tracin-{row}", np.array(helped + hurt))
    return lines, section("Influence of training examples (TracIn)", *parts)


def _ranking(run: Run, marked: str, found: training.Influence) -> dict[str, Json]:
    """Returns average precisions with which self-influence and loss rank marked examples."""
    from sklearn.metrics import average_precision_score

    pipeline = run.pipeline("train")
    if marked not in (known := pipeline.examples(found.indices[:1])):
        raise UserError(
            f"training examples have no array {marked!r} (they have {', '.join(known)}): name one "
            f"with trac_in marked=NAME"
        )
    truth = np.concatenate([each[marked] for each in map(pipeline.examples, chunks(found.indices))])
    return {
        "marked": marked,
        "share": _round(truth.mean()),
        "average_precision_of_self_influence": _round(average_precision_score(truth, found.own)),
        "average_precision_of_loss": _round(average_precision_score(truth, found.loss)),
    }


def _nearest(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    known, indices = _spread(run, "train", asked)
    request, _, _ = make_request(run, chosen.examples, target)
    others, _, _ = make_request(run, known, target)
    first = request.take(np.arange(1))
    flat = [path for path, leaf in request.subject.layers(first.x, first.rows) if leaf.ndim == 2]
    layer = asked.layer or (flat[-2] if len(flat) > 1 else learned.default_layer(request))
    order, likeness = training.nearest_examples(request, others, layer)
    lines: Lines = []
    parts = [paragraph(f"By the cosine of the outputs of {layer}.")]
    for row, caption in enumerate(chosen.captions):
        places = indices[order[row]]
        lines.append(
            {"example": caption, "nearest": places.tolist(), "cosine": _round(likeness[row])}
        )
        parts.append(paragraph(f"{caption}: examples {', '.join(map(str, places))}"))
        parts += _strip(folder, run, f"nearest-{row}", places)
    return lines, section("Nearest training examples", *parts)


def _concept(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    del folder
    files = expand([Path(asked.concept)])
    others, _ = _spread(run, "train", asked)
    request, names, _ = make_request(run, chosen.examples, target)
    ours, _, _ = make_request(run, read_files(run, files), target)
    theirs, _, _ = make_request(run, others, target)
    layer = asked.layer or learned.default_layer(request)
    found = concepts.concept_activation(request, ours, theirs, layer)
    line: dict[str, Json] = {
        "concept": asked.concept, "layer": layer, "targets": sorted(set(names)),
        "score": _round(found.score), "random": _round(found.random.mean()),
        "p_value": float(found.p_value), "accuracy": _round(found.accuracy),
    }  # fmt: skip
    verdict = "depends on the concept" if found.p_value < 0.05 else "does not differ from chance"
    about = (
        f"In {layer} the target rises toward {asked.concept} in {found.score:.0%} of the rows, "
        f"toward random directions in {found.random.mean():.0%} (p = {found.p_value:.2g}): it "
        f"{verdict}. A linear classifier tells the concept with accuracy {found.accuracy:.2f}."
    )
    return [line], section("Concept (TCAV)", paragraph(about))


def _counterfactual(run: Run, asked: Any, chosen: Chosen, target: Any, folder: Folder) -> Any:
    request, _, prediction = make_request(run, chosen.examples, target)
    if not isinstance(request.subject.target, Class):
        raise UserError("a counterfactual changes the class: it needs a classifier")
    examples, indices = _spread(run, "train", asked)
    known, _, _ = make_request(run, examples, target)
    classes = prediction.shape[1] if np.ndim(prediction) == 2 else 2
    names = run.experiment.data.output_names()
    wanted = number(asked.wanted, names, classes, "class")
    found = concepts.find_counterfactuals(request, known, classes, wanted)
    _, columns = table_columns(run.experiment.data)
    lines: Lines = []
    parts = []
    for row, each in enumerate(found):
        label = names[each.label] if len(names) == classes else each.label
        changed = [columns[f] if columns else int(f) for f in each.features]
        nearest = int(indices[each.index]) if each.index >= 0 else None
        line: dict[str, Json] = {"example": chosen.captions[row], "changed": changed}
        lines.append({**line, "becomes": label, "values_of": nearest})
        shown = ", ".join(map(str, changed)) or "nothing"
        parts.append(
            paragraph(f"{chosen.captions[row]}: {label}, if {shown} were as in example {nearest}")
        )
        x = next(iter(request.x.values()))[row]
        if x.ndim == 3:
            pair = [attributions.as_image(v) for v in (x, next(iter(each.x.values())))]
            parts.append(_images(folder, f"counterfactual-{row}", np.stack(pair)))
    return lines, section("Counterfactuals", *parts)


def _spread(run: Run, split: str, asked: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns examples that are spread over a split, and their indices."""
    pipeline = run.pipeline(split)
    count = min(asked.examples, len(pipeline))
    indices = np.linspace(0, len(pipeline) - 1, count).round().astype(int)
    return pipeline.examples(indices), indices


def _strip(folder: Folder, run: Run, name: str, indices: np.ndarray) -> list[Html]:
    """Training examples side by side, if they are images."""
    rows = run.pipeline("train").examples(indices)[run.experiment.task.input_names[0]]
    if rows.ndim != 4:
        return [paragraph(f"examples {', '.join(map(str, indices))}", quiet=True)]
    return [_images(folder, name, np.stack([attributions.as_image(x) for x in rows]))]


def _images(folder: Folder, name: str, images: np.ndarray) -> Html:
    """Images in a grid, also written as a file."""
    path = Images(images).write(folder.path / name.replace("/", "_"))
    return folder.embedded(path, name)


def _round(value: Any) -> Json:
    return jax.tree.map(lambda x: round(float(x), 6), np.asarray(value).tolist())
