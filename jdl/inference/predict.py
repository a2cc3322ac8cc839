"""Predictions from files: images, tables, texts or series in, one JSON object an example out."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jdl.data import Pairs, Series
from jdl.data.base import Example, Reader
from jdl.data.pipeline import apply_transforms
from jdl.data.text import as_text
from jdl.data.tokenizers import PAD
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.tasks import Translation
from jdl.tasks.translation import texts as decoded
from jdl.trainer.api import restore_run
from jdl.trainer.run import Run
from jdl.typing import Json


def open_to_predict(workdir: Path, experiment: Experiment) -> Run:
    """Opens a run like `jdl.open_run`, but reads at most one batch of the training split.

    Args:
      workdir: the run directory.
      experiment: as `jdl.trainer.record.read_run` returns it; its task may decode in another way.

    Raises:
      UserError: the directory holds no checkpoint that fits the experiment.
    """
    data = dataclasses.replace(experiment.data, pipeline="grain")
    return restore_run(workdir, dataclasses.replace(experiment, data=data))


def predict_files(
    run: Run, read: Reader, paths: Iterable[Path], complain: Callable[[UserError], Any]
) -> Iterator[dict[str, Json]]:
    """Predicts for every example of some files, at least a batch at once.

    Args:
      run: with the weights to use.
      read: how a file becomes examples (`Data.reader`).
      paths: of the files.
      complain: is told of each file that cannot be used; the others go on.

    Yields:
      `file`, `row` (of a table or of several texts, from 1) and what the task says of the
      prediction (`Task.format_prediction`), in the order of the files.
    """
    names = run.experiment.data.output_names()
    places: list[dict[str, Json]] = []
    examples: list[Example] = []
    for path in paths:
        try:
            found = _examples(run, read, path)
        except UserError as error:
            complain(error)
            continue
        examples += found
        places += _places(run, path, len(found))
        if len(examples) >= run.experiment.batch_size:
            yield from _predictions(run, names, places, examples)
            places, examples = [], []
    if examples:
        yield from _predictions(run, names, places, examples)


def check_translates(workdir: Path, experiment: Experiment) -> None:
    """Raises a UserError where a directory's run does not translate texts."""
    task, data = experiment.task, experiment.data
    if not (isinstance(task, Translation) and isinstance(data, Pairs)):
        raise UserError(
            f"{workdir} holds a run of {type(task).__name__} on {type(data).__name__}: what "
            f"translates texts is Translation on Pairs"
        )


def translate(run: Run, texts: Iterable[str]) -> Iterator[str]:
    """Translates texts, up to a batch at once.

    Args:
      run: of `Translation` on `Pairs`.
      texts: read as far as is needed for what is asked of the result.

    Raises:
      UserError: a text is empty, or too long for the model.
    """
    data: Any = run.experiment.data
    lines, count = iter(texts), 0
    context = getattr(run.experiment.model, "max_position_embeddings", math.inf)
    while some := list(itertools.islice(lines, run.experiment.batch_size)):
        rows = data.encode([as_text(text) for text in some])
        lengths = (rows != PAD).sum(1)
        for text, length in zip(some, lengths, strict=True):
            count += 1
            if not text.strip():
                raise UserError(f"text {count} is empty: there is nothing to translate")
            if length > context:
                raise UserError(
                    f"text {count} has {length} tokens, more than the model's context of {context}"
                )
        found = run.predict_rows({run.experiment.task.inputs: rows})
        yield from decoded(found, data.tokenizer())
    if not count:
        raise UserError("there is no text to translate: give --text, or lines to read")


def _predictions(
    run: Run, names: Sequence[str], places: list[dict[str, Json]], examples: list[Example]
) -> Iterator[dict[str, Json]]:
    arrays = {name: [example[name] for example in examples] for name in examples[0]}
    found = run.predict(arrays)
    for index, place in enumerate(places):
        one = jax.tree.map(lambda leaf: leaf[index], found)  # noqa: B023
        yield {**place, **run.experiment.task.format_prediction(one, names)}


def _examples(run: Run, read: Reader, path: Path) -> list[Example]:
    """The examples of a file.

    Raises:
      UserError: it cannot be read, or its examples are not shaped as those of training.
    """
    arrays, task = read(path), run.experiment.task
    examples: list[Example] = [
        dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)
    ]
    try:
        first = apply_transforms(run.experiment.data, examples[0])
    except KeyError as error:
        raise UserError(f"{path} gives no {error}, which a transform of the data needs") from error
    if task.inputs not in first:
        raise UserError(f"{path} gives no {task.inputs!r}, which the model reads")
    for name, array in first.items():
        if name in run.batch and array.shape != run.batch[name].shape[1:]:
            raise UserError(
                f"{path}: {name!r} has shape {array.shape}, where the run was trained on "
                f"{run.batch[name].shape[1:]}"
            )
    return examples


def _places(run: Run, path: Path, count: int) -> list[dict[str, Json]]:
    """Where each example of a file lies; of a series the whole file is one example."""
    if path.suffix.lower() != ".csv" or isinstance(run.experiment.data, Series):
        return [{"file": str(path)} for _ in range(count)]
    return [{"file": str(path), "row": row} for row in range(1, count + 1)]
