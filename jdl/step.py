"""One training step, one evaluation, one prediction: pure functions, compiled in `parallel`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdl.data.base import DeviceTransform
from jdl.metrics import Mean, Metrics
from jdl.state import TrainState
from jdl.tasks import Task
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True)
class Program:
    """What a step computes; everything here is fixed when it is compiled."""

    model: nn.Module
    task: Task
    optimizer: optax.GradientTransformationExtraArgs
    transforms: Sequence[DeviceTransform] = ()
    """Applied to each batch in turn, inside the compiled step."""
    num_microbatches: int = 1
    """Micro-batches into which a batch is split, to bound the memory of one step."""
    compiler_options: tuple[tuple[str, str], ...] = ()
    """Options of XLA by name, for the functions of this program alone."""


def init(program: Program, key: Key, batch: Batch) -> TrainState:
    """A fresh state; the shapes, not the values, of `batch` matter."""
    init_key, run_key = jax.random.split(key)
    batch = transform(program, batch, None)
    variables = program.task.init(program.model, init_key, batch)
    params = variables.pop("params", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=params,
        collections=variables,
        opt_state=program.optimizer.init(params),
    )


def update(
    program: Program, state: TrainState, batch: Batch, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on one batch.

    Totals and weights are summed over micro-batches and devices before the one division, so the
    gradient is that of the whole batch however it is split. Where the gradient or the loss is not
    finite, or every row is masked, parameters, collections and optimizer state stay as they are and
    only `step` advances.

    Args:
      program: what to compute.
      state: the state before.
      batch: arrays (batch, ...); under `axis_name` those of this device.
      axis_name: the mapped axis over devices, under `pmap`.

    Returns:
      The state after, and the batch's metrics; `skipped` is 1 where gradient or loss was not
      finite, and then all others count nothing.
    """
    key = jax.random.fold_in(state.key, state.step)
    rows = len(batch["mask"])
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
    batch = transform(program, batch, keys)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    gradients, weight, collections, metrics = _sum_over_microbatches(program, state, batch, key)
    if axis_name is not None:
        gradients, weight, metrics = jax.lax.psum((gradients, weight, metrics), axis_name)
        collections = jax.lax.pmean(collections, axis_name)
    gradients = jax.tree.map(_divide, weight, gradients)

    loss = metrics.get("loss", Mean(jnp.zeros(()), jnp.ones(())))
    # Another metric may be undefined on a batch; that is no reason not to learn from it.
    finite = jnp.array(True)
    for leaf in jax.tree.leaves((gradients, loss)):
        finite &= jnp.isfinite(leaf).all()
    value = loss.total / jnp.maximum(loss.count, 1)

    def step() -> tuple[PyTree, PyTree, PyTree]:
        updates, opt_state = program.optimizer.update(
            gradients, state.opt_state, state.params, value=value
        )
        return optax.apply_updates(state.params, updates), collections, opt_state

    def skip() -> tuple[PyTree, PyTree, PyTree]:
        return state.params, state.collections, state.opt_state

    has_examples = jnp.stack([jnp.any(leaf > 0) for leaf in jax.tree.leaves(weight)]).any()
    params, collections, opt_state = jax.lax.cond(finite & has_examples, step, skip)
    metrics = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), dict(metrics))
    metrics["skipped"] = Mean(1.0 - finite, jnp.ones(()))
    state = dataclasses.replace(
        state, step=state.step + 1, params=params, collections=collections, opt_state=opt_state
    )
    return state, metrics


def evaluate(
    program: Program, state: TrainState, batch: Batch, axis_name: str | None = None
) -> Metrics:
    """The mergeable metrics of a batch, outside training."""
    metrics = program.task.evaluate(program.model, state, transform(program, batch, None))
    return metrics if axis_name is None else jax.lax.psum(metrics, axis_name)


def predict(program: Program, state: TrainState, batch: Batch) -> Any:
    """The task's prediction for each row of a batch."""
    return program.task.predict(program.model, state, transform(program, batch, None))


def transform(program: Program, batch: Batch, keys: jax.Array | None) -> dict[str, Any]:
    """Applies the device transforms; `keys` (batch,) are given only in training."""
    for each in program.transforms:
        batch = each(batch, keys)
    return dict(batch)


def _sum_over_microbatches(
    program: Program, state: TrainState, batch: Batch, key: Key
) -> tuple[PyTree, PyTree, PyTree, Metrics]:
    """The gradient field summed over micro-batches."""
    task, model, count = program.task, program.model, program.num_microbatches
    if count == 1:
        return task.gradient(model, state, batch, key)
    # Micro-batch i takes rows i, i+count, ...: each then stays spread over all devices.
    micro = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), dict(batch)
    )

    def body(carry: Any, index: jax.Array) -> tuple[Any, None]:
        collections, sums = carry
        part = jax.tree.map(lambda x: x[index], micro)
        gradients, weight, collections, metrics = task.gradient(
            model,
            dataclasses.replace(state, collections=collections),
            part,
            jax.random.fold_in(key, index),
        )
        new = (gradients, weight, metrics)
        return (collections, new if sums is None else jax.tree.map(jnp.add, sums, new)), None

    carry, _ = body((state.collections, None), jnp.zeros((), jnp.int32))
    carry = scan_or_unroll(body, carry, jnp.arange(1, count))[0]
    collections, (gradients, weight, metrics) = carry
    return gradients, weight, collections, metrics


def scan_or_unroll(body: Any, carry: Any, xs: PyTree) -> tuple[Any, Any]:
    """`jax.lax.scan`, unrolled where `body` convolves on a CPU: rolled, that is ~30x slower."""
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    unroll = jax.default_backend() == "cpu" and "conv_general_dilated" in str(
        jax.make_jaxpr(body)(carry, first)
    )
    return jax.lax.scan(body, carry, xs, unroll=unroll)


def _divide(weight: jax.Array, gradients: PyTree) -> PyTree:
    """The mean from a total; zero where nothing counted."""
    scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    return jax.tree.map(lambda gradient: gradient * scale, gradients)
