"""Predicts from images, videos, sounds, tables, texts or series in files; yields JSON."""

import itertools
import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jdl.audio import SUFFIXES as SOUNDS
from jdl.data import Table
from jdl.data.examples import apply_transforms
from jdl.data.files import TABULAR
from jdl.data.labeled_files import SUFFIXES as IMAGES
from jdl.data.readers import Reader
from jdl.data.sources import Example
from jdl.errors import UserError
from jdl.inference.outputs import Output
from jdl.inference.video import is_video, read_frames, write_ppm
from jdl.trainer.checks import check_shape
from jdl.trainer.run import Run
from jdl.typing import Json


def predict_files(
    run: Run,
    read: Reader,
    paths: Iterable[Path],
    on_error: Callable[[UserError], Any],
    output: Output = lambda place, prediction, pixels: None,
    predict: Callable[[Any], Any] | None = None,
) -> Iterator[dict[str, Json]]:
    """Predicts every example of several files, at least a batch at a time.

    Args:
      run: the run whose model predicts.
      read: reads the examples of a file (`Data.reader`).
      paths: the files; every frame of a video is an image.
      on_error: called for each file that cannot be used; it is skipped, or the rest of a video.
      output: called with each prediction, such as `PictureOutputs`.
      predict: in place of `run.predict`, such as the mean of several runs.

    Yields:
      A JSON object per example, in the order of the files: `file`, `row` (in a table or a file of
      several texts, from 1), `series` or `user`, or `frame` (from 0) and `seconds`, and the keys of
      `Task.format_prediction`.
    """
    names = run.experiment.data.output_names()
    places: list[Place] = []
    examples: list[Example] = []
    for path in paths:
        parts = _frames(run, read, path) if is_video(path) else _file(run, read, path)
        for where, found in _until_error(parts, on_error):
            examples += found
            places += where
            if len(examples) >= run.experiment.batch_size:
                yield from _predictions(run, names, places, examples, output, predict)
                places, examples = [], []
    if examples:
        yield from _predictions(run, names, places, examples, output, predict)


def expand(paths: Iterable[Path]) -> list[Path]:
    """Returns files, with those below each folder in its place, sorted.

    Hidden files are left out, and if there are images, videos or sounds, all others.

    Raises:
      UserError: a folder has no files.
    """
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        below = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
        found = [path / p for p in below if not any(part.startswith(".") for part in p.parts)]
        known = (*IMAGES, *SOUNDS)
        media = [p for p in found if p.suffix.lower() in known or is_video(p)]
        if not found:
            raise UserError(f"the folder {path} has no files to predict from")
        files += media or found
    return files


class Place(NamedTuple):
    """Where an example is from."""

    keys: dict[str, Json]
    pixels: np.ndarray | None  # of a frame of a video


def _until_error(
    parts: Iterator[tuple[Any, Any]], on_error: Callable[[UserError], Any]
) -> Iterator[tuple[list[Place], list[Example]]]:
    """Yields parts until one raises a UserError, with which `on_error` is called."""
    try:
        yield from parts
    except UserError as error:
        on_error(error)


def _file(run: Run, read: Reader, path: Path) -> Iterator[tuple[list[Place], Any]]:
    """Yields the places and examples of a file."""
    found = read_examples(run, read, path)
    yield [Place(keys, None) for keys in example_places(run, path, len(found))], found


def _frames(run: Run, read: Reader, path: Path) -> Iterator[tuple[list[Place], Any]]:
    """Yields the place and the example of each frame of a video.

    Raises:
      UserError: the model reads no images, or the video cannot be read.
    """
    name = run.experiment.task.input_names[0]
    if name not in run.batch or len(run.batch[name].shape) != 4:
        raise UserError(f"{path} is a video, and the model reads no images but {name!r}")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "frame.ppm"  # a data set reads files, each in its own way
        for index, (seconds, pixels) in enumerate(read_frames(path)):
            write_ppm(pixels, image)
            place = {"file": str(path), "frame": index, "seconds": round(seconds, 6)}
            try:
                yield [Place(place, pixels)], read_examples(run, read, image)
            except UserError as error:
                where = f"{path}, frame {index}"
                raise UserError(str(error).replace(str(image), where)) from error


def _predictions(
    run: Run,
    names: Sequence[str],
    places: list[Place],
    examples: list[Example],
    output: Output,
    predict: Callable[[Any], Any] | None,
) -> Iterator[dict[str, Json]]:
    shapes = [{name: np.shape(array) for name, array in each.items()} for each in examples]
    rows = range(len(examples))
    for _, group in itertools.groupby(rows, lambda row: shapes[row]):
        alike = list(group)
        arrays = {name: [examples[row][name] for row in alike] for name in examples[alike[0]]}
        found = run.predict(arrays) if predict is None else predict(arrays)
        for index, row in enumerate(alike):
            one = jax.tree.map(operator.itemgetter(index), found)
            output(places[row].keys, one, places[row].pixels)
            yield {**places[row].keys, **run.experiment.task.format_prediction(one, names)}


def read_examples(run: Run, read: Reader, path: Path) -> list[Example]:
    """Reads the examples of a file.

    Raises:
      UserError: it cannot be read, or its examples differ in shape from those of training.
    """
    arrays, task = read(path), run.experiment.task
    examples: list[Example] = [
        dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)
    ]
    try:
        first = apply_transforms(run.prediction_data, examples[0])
    except KeyError as error:
        raise UserError(f"{path} gives no {error}, which a transform of the data needs") from error
    for name in task.input_names:
        if name not in first:
            raise UserError(f"{path} gives no {name!r}, which the model reads")
    for name, array in first.items():
        check_shape(run, name, array.shape, f"{path}: ")
    return examples


def example_places(run: Run, path: Path, count: int) -> list[dict[str, Json]]:
    """Returns `file`, and what tells each example of it apart: a name, or `row` in a table."""
    data = run.experiment.data
    names = data.example_names(path)
    if names is None and (isinstance(data, Table) or path.suffix.lower() in TABULAR):
        names = {"row": range(1, count + 1)}
    rows = zip(*names.values(), strict=True) if names else [()] * count
    return [{"file": str(path), **dict(zip(names or (), row, strict=True))} for row in rows]
