"""Tables: permutation importance of columns, and partial dependence on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data.features import Feature
from jdl.errors import UserError
from jdl.explain.features import table_columns, table_of
from jdl.explain.method import Request
from jdl.metrics import HIGHER_IS_BETTER
from jdl.tasks.base import Task
from jdl.trainer.run import Run


@dataclass(frozen=True)
class Importance:
    """How much worse a metric is where a column is permuted.

    Attributes:
      metric: its name.
      score: of the rows as they are.
      names: of the columns.
      mean, deviation: of the loss of the metric over the repeats, (columns,): positive where the
        model needs the column.
    """

    metric: str
    score: float
    names: Sequence[str]
    mean: np.ndarray
    deviation: np.ndarray


def permutation_importance(
    run: Run, examples: Mapping[str, np.ndarray], metric: str | None = None, repeats: int = 5
) -> Importance:
    """Permutes each column among the rows and scores them (Breiman, 2001; Fisher et al., 2019).

    The inputs of a column, such as its one-hot words, are permuted together.

    Args:
      run: of a table, or of any vector, whose numbers are then the columns.
      examples: rows with targets, after the host transforms.
      metric: of the task; None: accuracy, or the loss where there is none.
      repeats: permutations of each column.

    Raises:
      UserError: the inputs are not vectors, or there is no such metric.
    """
    name, ids, names = columns(run, examples)
    known = scores(run, examples)
    metric = metric or ("accuracy" if "accuracy" in known else "loss")
    if metric not in known:
        raise UserError(f"the task has no metric {metric!r} (it has {', '.join(known)})")
    better = run.experiment.task.higher_is_better(metric)
    better = HIGHER_IS_BETTER.get(metric, False) if better is None else better
    sign = 1 if better else -1
    rng, x = np.random.default_rng(0), examples[name]
    falls = np.zeros((repeats, len(names)))
    for repeat in range(repeats):
        for column in range(len(names)):
            order, own = rng.permutation(len(x)), ids == column
            moved = x.copy()
            moved[:, own] = x[order][:, own]
            found = scores(run, {**examples, name: moved})[metric]
            falls[repeat, column] = sign * (known[metric] - found)
    return Importance(metric, known[metric], names, falls.mean(0), falls.std(0))


def scores(run: Run, examples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics of examples, each counted once."""
    from jdl import metrics as metrics_lib
    from jdl.tasks.randomness import ROW_SEEDS, row_seeds

    count, size = len(next(iter(examples.values()))), run.experiment.batch_size
    state, parts = run.evaluation_state(run.state), []
    for begin in range(0, count, size):
        index = np.minimum(np.arange(begin, begin + size), count - 1)
        batch = {name: array[index] for name, array in examples.items()}
        batch["mask"] = np.arange(begin, begin + size) < count
        batch[ROW_SEEDS] = row_seeds(None, np.arange(begin, begin + size))
        parts.append(run.compiled.evaluate(state, run.compiled.put(batch)))
    found = metrics_lib.compute(metrics_lib.merge(parts))
    return {name: float(value) for name, value in found.items() if np.ndim(value) == 0}


@dataclass(frozen=True)
class Dependence:
    """The mean scalar where a column has each of some values.

    Attributes:
      name: of the column.
      values: numbers in its own unit, or words.
      mean: of the scalar over the rows, (values,).
      each: of the rows, (rows, values): individual conditional expectation (Goldstein et al.,
        2015).
    """

    name: str
    values: Sequence[float | str]
    mean: np.ndarray
    each: np.ndarray


def partial_dependence(
    run: Run, request: Request, column: str | int, points: int = 20
) -> Dependence:
    """Sets a column of all rows to each of some values (Friedman, 2001).

    Args:
      run: of a table, or of any vector.
      request: of the scalar for some rows.
      column: its name or number.
      points: numbers, evenly spaced quantiles of the rows'; of words all.

    Raises:
      UserError: there is no such column, or the inputs are not vectors.
    """
    from jdl.explain.targets import number

    name, ids, names = columns(run, request.x)
    place = number(column, names, len(names), "column")
    x, own = request.x[name], np.flatnonzero(ids == place)
    feature = _feature(run, place)
    if feature is not None and feature.kind == "category":
        inputs = np.eye(len(own), dtype=np.float32)[: len(feature.words)]
        values: list[Any] = list(feature.words)
    else:
        quantiles = np.quantile(x[:, own[0]], np.linspace(0, 1, points))
        inputs = np.zeros((points, len(own)), np.float32)  # a further input says: not missing
        inputs[:, 0] = quantiles
        scale = (1.0, 0.0) if feature is None else (feature.divisor, feature.mean)
        values = (quantiles * scale[0] + scale[1]).tolist()
    each = []
    for given in inputs:
        moved = x.copy()
        moved[:, own] = given
        each.append(request.scores({**request.x, name: moved}))
    found = np.stack(each, 1)
    return Dependence(names[place or 0], values, found.mean(0), found)


def columns(run: Run, inputs: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray, list[str]]:
    """Returns the input's name, the column of each of its numbers, and the columns' names.

    Raises:
      UserError: the input is not one vector.
    """
    task: Task = run.experiment.task
    name = task.input_names[0]
    if len(task.input_names) > 1 or inputs[name].ndim != 2:
        raise UserError(
            f"{name!r} has the shape {inputs[name].shape[1:]}, where a table has one number for "
            f"each column: use --method integrated_gradients"
        )
    found, names = table_columns(run.experiment.data)
    width = inputs[name].shape[1]
    if name in found and len(found[name]) == width:
        return name, found[name], names
    return name, np.arange(width), [str(index) for index in range(width)]


def _feature(run: Run, place: int | None) -> Feature | None:
    table = table_of(run.experiment.data)
    if table is None or place is None:
        return None
    return Feature.from_json(table.fitted()["features"][place])
