"""Groups of examples: columns kept beside the inputs, and their intersections."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jdl.data import Table
from jdl.data.splits import Splits
from jdl.errors import UserError, nearest
from jdl.trainer.run import Run

MOST = 50
"""Values of a column that make groups; one with more is a number."""

MISSING = "(none)"
"""Name of the group of examples without a value."""


@dataclass(frozen=True)
class Column:
    """The group of each example by one column."""

    name: str
    groups: tuple[str, ...]  # names of the groups that occur
    codes: np.ndarray  # (examples,) int, into `groups`


def intersection(columns: Sequence[Column]) -> Column:
    """Returns the intersections of groups that occur, as one column."""
    if len(columns) == 1:
        return columns[0]
    codes = np.ravel_multi_index(
        tuple(column.codes for column in columns), tuple(len(column.groups) for column in columns)
    )
    names = [", ".join(each) for each in itertools.product(*(c.groups for c in columns))]
    found, places = np.unique(codes, return_inverse=True)
    return Column(", ".join(c.name for c in columns), tuple(names[i] for i in found), places)


def as_column(name: str, values: np.ndarray, names: Sequence[str] = ()) -> Column:
    """Returns the groups that an array (examples,) of integers, numbers or words gives.

    Args:
      name: of the column.
      values: of the examples; -1 with `names`: the example has no value.
      names: of the values 0, 1, ...; empty if they have none.

    Raises:
      UserError: it is no array (examples,), or has one value alone, or too many.
    """
    if values.ndim != 1:
        raise UserError(f"the column {name!r} has shape {values.shape}, where a group is one value")
    found, codes = np.unique(values, return_inverse=True)
    if len(found) > MOST:
        raise UserError(
            f"the column {name!r} has {len(found)} values, more than {MOST}: write a column of a "
            f"few ranges of it"
        )
    shown = tuple(
        (names[int(each)] if each >= 0 else MISSING) if names else str(each) for each in found
    )
    if len(found) < 2:
        raise UserError(
            f"the column {name!r} is {shown[0]!r} in all {len(values):,} examples: there are no "
            f"two groups to compare"
        )
    return Column(name, shown, codes)


def read_columns(run: Run, split: str, names: Sequence[str]) -> list[Column]:
    """Reads the groups of a split's examples.

    Args:
      run: whose data has them: arrays of its examples, or columns of its table.
      split: of the data.
      names: of the columns.

    Raises:
      UserError: there is no such split or column, or it makes no groups.
    """
    if len(set(names)) != len(names) or not names:
        raise UserError(f"name each group column once, not {', '.join(names) or 'none'}")
    data, arrays = run.experiment.data, read_arrays(run, split)
    missing = [name for name in names if name not in arrays]
    if missing and isinstance(data, Table) and set(missing) <= set(data.column_names()):
        data = data.keeping(missing)
        arrays = read_split(Splits(data), split)
    for name in missing:
        if name not in arrays:
            inputs = run.experiment.task.input_names
            known = [each for each, x in arrays.items() if x.ndim == 1 and each not in inputs]
            columns = data.column_names() if isinstance(data, Table) else known
            raise UserError(
                f"the {split} split of {data.full_name()} has no column {name!r} (it has "
                f"{', '.join(columns) or 'none'}){nearest(name, columns)}"
            )
    return [as_column(name, arrays[name], data.value_names(name)) for name in names]


def read_arrays(run: Run, split: str) -> Mapping[str, np.ndarray]:
    """Returns all examples of a split of a run, as they are before the device transforms."""
    run.pipeline(split)  # checks them
    return read_split(run.data, split)


def read_split(splits: Splits, split: str) -> Mapping[str, np.ndarray]:
    """Returns all examples of a split."""
    pipeline = splits.pipeline(split)
    return pipeline.examples(np.arange(len(pipeline)))
