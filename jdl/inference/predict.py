"""Predicts from files of images, tables, texts or series; yields JSON objects per example."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jdl.data import Series, Table
from jdl.data.base import Reader
from jdl.data.files import TABULAR
from jdl.data.pipeline import apply_transforms
from jdl.data.sources import Example
from jdl.errors import UserError
from jdl.trainer.run import Run
from jdl.typing import Json


def predict_files(
    run: Run, read: Reader, paths: Iterable[Path], on_error: Callable[[UserError], Any]
) -> Iterator[dict[str, Json]]:
    """Predicts every example of several files, at least a batch at a time.

    Args:
      run: the run whose model predicts.
      read: reads the examples of a file (`Data.reader`).
      paths: the files.
      on_error: called for each file that cannot be used; it is skipped.

    Yields:
      A JSON object per example, in the order of the files: `file`, `row` (in a table or a file of
      several texts, from 1) and the keys of `Task.format_prediction`.
    """
    names = run.experiment.data.output_names()
    places: list[dict[str, Json]] = []
    examples: list[Example] = []
    for path in paths:
        try:
            found = _examples(run, read, path)
        except UserError as error:
            on_error(error)
            continue
        examples += found
        places += _places(run, path, len(found))
        if len(examples) >= run.experiment.batch_size:
            yield from _predictions(run, names, places, examples)
            places, examples = [], []
    if examples:
        yield from _predictions(run, names, places, examples)


def _predictions(
    run: Run, names: Sequence[str], places: list[dict[str, Json]], examples: list[Example]
) -> Iterator[dict[str, Json]]:
    arrays = {name: [example[name] for example in examples] for name in examples[0]}
    found = run.predict(arrays)
    for index, place in enumerate(places):
        one = jax.tree.map(lambda leaf: leaf[index], found)  # noqa: B023
        yield {**place, **run.experiment.task.format_prediction(one, names)}


def _examples(run: Run, read: Reader, path: Path) -> list[Example]:
    """Reads the examples of a file.

    Raises:
      UserError: it cannot be read, or its examples differ in shape from those of training.
    """
    arrays, task = read(path), run.experiment.task
    examples: list[Example] = [
        dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)
    ]
    try:
        first = apply_transforms(run.experiment.data, examples[0])
    except KeyError as error:
        raise UserError(f"{path} gives no {error}, which a transform of the data needs") from error
    for name in task.input_names:
        if name not in first:
            raise UserError(f"{path} gives no {name!r}, which the model reads")
    for name, array in first.items():
        if name in run.batch and array.shape != run.batch[name].shape[1:]:
            raise UserError(
                f"{path}: {name!r} has shape {array.shape}, where the run was trained on "
                f"{run.batch[name].shape[1:]}"
            )
    return examples


def _places(run: Run, path: Path, count: int) -> list[dict[str, Json]]:
    """Returns `file` and `row` of each example; for series the whole file is one example."""
    data = run.experiment.data
    tabular = isinstance(data, Table) or path.suffix.lower() in TABULAR
    if not tabular or isinstance(data, Series):
        return [{"file": str(path)} for _ in range(count)]
    return [{"file": str(path), "row": row} for row in range(1, count + 1)]
