"""The commands for what there is to train on: `jdl list` and `jdl prepare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.errors import UserError


def list_experiments() -> None:
    """List the experiments: what, data, expected result and time."""
    from jdl.config.experiment_file import available, documentation, expectation, load

    rows = []
    for name, path in available().items():
        try:
            data = load(path).experiment.data.describe()
        except UserError as error:
            data = f"({error})"
        promise = expectation(path)
        result = f"{promise.metric} {promise.mean}" if promise else "-"
        seconds = f"{promise.seconds:g} s" if promise else "-"
        rows.append((name, documentation(path).split("\n")[0], data, result, seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    /,
    from_: Annotated[Path | None, arg(name="from")] = None,
    data_dir: Path | None = None,
) -> None:
    """Write a data set as array_record, in TensorFlow Datasets' layout and without TensorFlow.

    For mnist, fashion_mnist, cifar10, imdb_reviews, cats_vs_dogs, tiny_shakespeare and multi30k.

    Args:
        name: of the data set.
        from_: the original files, where they are at hand; else they are downloaded.
        data_dir: where data sets lie (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
    """
    from jdl.data.prepare import prepare

    print(f"{prepare(name, raw=from_, data_dir=data_dir)} holds {name}")
