"""Checks of a run: its experiment before anything is opened, and arrays before they are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jdl.data.base import Data
from jdl.data.series import Series
from jdl.data.tables import Table
from jdl.data.vocabulary import check_pad_token, check_token_ids, check_vocab_size
from jdl.errors import UserError
from jdl.experiment import Experiment


def check_experiment(experiment: Experiment) -> None:
    """Raises a UserError if batch size, devices, vocabulary and buckets do not fit together."""
    _check_batch_size(experiment)
    check_vocabulary(experiment)
    if experiment.data.buckets and experiment.runtime.steps_per_execution > 1:
        raise UserError(
            "data.buckets cuts each batch to another length, where one execution takes batches "
            "of one: set runtime.steps_per_execution to 1"
        )


def _check_batch_size(experiment: Experiment) -> None:
    """Raises a UserError unless the devices can share each microbatch evenly."""
    count = experiment.strategy.num_batch_shards()
    rows = experiment.batch_size // experiment.num_microbatches
    if rows % count:
        micro = " of a microbatch" if experiment.num_microbatches > 1 else ""
        kind = "devices" if count == len(experiment.strategy.used()) else "groups of devices"
        raise UserError(
            f"batch_size: {rows} examples{micro} cannot be divided evenly over {count} {kind}"
        )


def check_vocabulary(experiment: Experiment) -> None:
    """Raises a UserError if tokenizer or transforms have tokens that the model does not know."""
    if vocab_size := getattr(experiment.model, "vocab_size", None):
        check_vocab_size(experiment.data, vocab_size)
    if (pad_token_id := getattr(experiment.model, "pad_token_id", None)) is not None:
        check_pad_token(experiment.data, pad_token_id)


def check_tokens(experiment: Experiment, arrays: Any, names: Sequence[str], where: str) -> None:
    """Raises a UserError if arrays (batch, time) hold ids beyond the model's vocabulary."""
    vocab_size = getattr(experiment.model, "vocab_size", 0)
    for name in names if vocab_size else ():
        tokens = np.asarray(arrays[name])
        if tokens.ndim == 2 and np.issubdtype(tokens.dtype, np.integer):
            check_token_ids(tokens, vocab_size, f"{where}: {name!r}", least=-1)


def check_scaled(data: Data | None, name: str, is_frame: bool) -> None:
    """Raises a UserError if the data scales columns, which `x` without a name may not be."""
    while data is not None:
        if isinstance(data, (Table, Series)):
            read = "predict from run.experiment.data.reader()(Path('new.csv'))"
            problem = (
                f"a frame holds them as they are: save it with x.to_csv('new.csv', index=False), "
                f"and {read}"
                if is_frame
                else f"an array may hold either: of raw columns {read}, of scaled ones from "
                f"{{{name!r}: x}}"
            )
            raise UserError(
                f"the run reads the columns of {data.full_name()} scaled, and {problem}"
            )
        data = data.wrapped


def has_shape_of_training(run: Any, name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of an example, without the batch axis, is as large as in training.

    Images of tasks of any size and token sequences of any length may be larger or smaller.
    """
    if name not in run.batch:
        return True
    task, trained, axes = run.experiment.task, run.batch[name].shape[1:], 0
    if len(shape) == len(trained):
        axes = 2 if task.any_size and len(shape) == 3 else int(task.any_length and len(shape) == 1)
    return shape[axes:] == trained[axes:]


def check_shape(run: Any, name: str, shape: tuple[int, ...], where: str) -> None:
    """Raises a UserError if an array of an example has another shape than in training.

    Args:
      run: whose model reads it.
      name: of the array.
      shape: without the batch axis.
      where: its origin, for the message.
    """
    if not has_shape_of_training(run, name, shape):
        trained = tuple(run.batch[name].shape[1:])
        raise UserError(
            f"{where}{name!r} has shape {shape}, where the run was trained on {trained}"
        )
