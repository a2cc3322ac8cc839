"""Warns of input columns that give the target away."""

from collections.abc import Mapping

import numpy as np

from jdl.data.columns import Categories, Column
from jdl.data.log import warn_once

SAMPLE = 10_000
"""Training rows, at most, that are looked at."""

LEAST = 50
"""Rows in which a column may follow the target by chance."""


def warn_of_leaks(
    path: str, inputs: Mapping[str, Column], name: str, target: Column, rows: np.ndarray
) -> None:
    """Logs each column that alone determines the target in all training rows.

    Such a column is often known only after what is to be predicted, like the date of a payment back
    beside whether it was paid.

    Args:
      path: of the file.
      inputs: by name.
      name: of the target.
      target: its column.
      rows: of training.
    """
    rows = rows[:: max(1, len(rows) // SAMPLE)]
    if len(rows) < LEAST:
        return
    for column_name, column in inputs.items():
        if _determines(column, target, rows):
            warn_once(
                f"{path}: column {column_name!r} alone determines the target {name!r} in all "
                f"training rows: if it is known only afterwards, leave it out of data.columns"
            )


def _determines(column: Column, target: Column, rows: np.ndarray) -> bool:
    y = target.codes[rows] if isinstance(target, Categories) else target.values[rows]
    x = column.codes[rows] if isinstance(column, Categories) else column.values[rows]
    known = np.isfinite(x) if not isinstance(column, Categories) else x >= 0
    if not known.any() or (y == y[0]).all():
        return False
    if isinstance(target, Categories):
        # Missing is a value like any other, as of a date that only some rows have.
        x = np.where(known, x, x[known].max() + 1.0)
        changes = int((np.diff(y[np.argsort(x, kind="stable")]) != 0).sum())
        values = np.unique(np.column_stack([x, y]), axis=0)[:, 0]
        alone = len(np.unique(values)) == len(values)
        ordered = changes == len(np.unique(y)) - 1
        return alone and (ordered or len(values) <= len(rows) // 10)
    if isinstance(column, Categories) or known.sum() < LEAST or np.ptp(x[known]) == 0:
        return False
    return bool(abs(np.corrcoef(x[known], y[known])[0, 1]) > 1 - 1e-9)
