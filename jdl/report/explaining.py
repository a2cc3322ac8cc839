"""Runs the methods that `jdl explain` names, and writes their page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.overrides import override
from jdl.config.overrides import snake as method_name
from jdl.errors import UserError
from jdl.explain import Explanations, Method, explain
from jdl.explain.analysis import Analysis
from jdl.explain.explanations import read_files
from jdl.report.analyses import report_analysis
from jdl.report.explanations import Chosen, choose, write_gallery
from jdl.trainer.run import Run
from jdl.typing import Json


@dataclass(frozen=True)
class _Named:
    """Has the method that a word names, see `jdl.config.override`."""

    method: Method | Analysis


def parse_methods(words: Sequence[str]) -> list[Method | Analysis]:
    """Returns the methods that words name; `NAME=VALUE` sets an option of the one before it.

    Raises:
      UserError: there is no such method or option; suggests the nearest.
    """
    found: list[dict[str, Any]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            found.append({"method": name})
        elif not found:
            raise UserError(f"--method {word}: name the method before its option")
        else:
            found[-1][f"method.{name}"] = value
    if not found:
        raise UserError("--method needs a name, such as integrated_gradients")
    return [override(_Named(Method()), changes).method for changes in found]


def explain_run(
    run: Run,
    files: Sequence[Path],
    methods: Sequence[str],
    target: str | None,
    out: Path,
    split: str | None = None,
    count: int = 9,
    checks: bool = True,
) -> Iterator[dict[str, Json] | Path]:
    """Explains predictions of a run by several methods, and writes a page about them.

    Args:
      run: that was restored.
      files: to explain the predictions of; (): examples of a split.
      methods: words as for `parse_methods`.
      target: name of the scalar; None: that of the prediction.
      out: folder of the page.
      split: of the examples; None: validation, or train without it.
      count: of examples at most.
      checks: make cards.

    Yields:
      A JSON object for each example and method, then one for each method with the means of its
      checks, at last the page.
    """
    asked = parse_methods(methods)
    chosen = _chosen(run, files, split, count)
    found: dict[str, Explanations] = {}
    sections = []
    for method in asked:
        name = method_name(type(method).__name__)
        if isinstance(method, Analysis):
            lines, section = report_analysis(run, method, chosen, target, out)
            sections.append(section)
            yield from ({"method": name, **line} for line in lines)
            continue
        while name in found:  # the same method with other options
            name += "_"
        each = found[name] = explain(run, chosen.examples, method, target, checks=checks)
        for place, caption in enumerate(chosen.captions):
            card = {} if each.card is None else {"card": each.card.row(place)}
            score = round(float(each.scores[place]), 6)
            shown = {"method": name, "example": caption, "target": each.names[place]}
            yield {**shown, "score": score, **card}
        if each.card is not None:
            yield {"method": name, "examples": len(chosen.captions), "card": each.card.mean()}
    if len(set(map(str, asked))) != len(asked):
        raise UserError("--method names a method twice with the same options: leave one out")
    page = write_gallery(out, run, chosen, found, sections)
    for name, each in found.items():
        for key, maps in each.maps().items():
            np.save(out / f"{name}-{key}.npy", maps.astype(np.float32))
    yield page


def _chosen(run: Run, files: Sequence[Path], split: str | None, count: int) -> Chosen:
    """Returns the examples of files, or of a split."""
    if not files:
        split = split or ("validation" if "validation" in run.splits else "train")
        return choose(run, split, count)
    rows = [read_files(run, [path]) for path in files]
    names = [str(path) for path in files]
    captions = [
        name if len(next(iter(row.values()))) == 1 else f"{name}, row {number}"
        for name, row in zip(names, rows, strict=True)
        for number in range(1, 1 + len(next(iter(row.values()))))
    ]
    shapes = [{key: array.shape[1:] for key, array in row.items()} for row in rows]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"{names[0]} has arrays of shapes {shapes[0]}, and {name} {shape}: explain files "
                f"of several sizes apart"
            )
    joined = {key: np.concatenate([row[key] for row in rows])[:count] for key in rows[0]}
    return Chosen({"Files": range(len(captions[:count]))}, joined, captions[:count])
