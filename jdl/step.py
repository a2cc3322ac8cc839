"""Initialization, update, evaluation and prediction as pure functions, compiled in `parallel`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from jdl.data.base import DeviceTransform
from jdl.data.views import Seen
from jdl.errors import UserError
from jdl.metrics import Mean, Metrics, sum_over_devices
from jdl.paths import path_name
from jdl.state import TrainState
from jdl.tasks import Task
from jdl.tasks.base import LABEL, STRENGTH
from jdl.tasks.observe import capture_input, check_active, check_variables, observe, without_sown
from jdl.tasks.randomness import (
    ROW_KEYS,
    ROW_SEEDS,
    fold_in_rows,
    pop_row_seeds,
    with_row_keys,
)
from jdl.tasks.terms import DENOMINATORS
from jdl.tasks.untrained import init_frozen, with_frozen
from jdl.tracing import errors_of, tracing_errors
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True)
class Program:
    """What a step computes. Everything here is static under `jit`."""

    model: nn.Module
    task: Task
    optimizer: optax.GradientTransformationExtraArgs
    transforms: Sequence[DeviceTransform] = ()
    """Applied to each batch in turn, inside the compiled step."""
    num_microbatches: int = 1
    """Parts that each batch is computed in, one after another, to bound the memory of a step."""
    compiler_options: tuple[tuple[str, str], ...] = ()
    """XLA options as (name, value), for the functions of this program only."""
    is_frozen: Callable[[str], bool] | None = None
    """Whether the optimizer leaves the parameter at a path as it is; None: no parameter."""
    layer: str | None = None
    """Path of a module; a prediction is then what it reads (`jdl embed`), not the task's."""

    def __post_init__(self) -> None:
        if self.task.couples_rows and self.num_microbatches > 1:
            raise UserError(
                f"num_microbatches={self.num_microbatches} computes the loss of a part of the "
                f"batch, but that of {type(self.task).__name__} couples all rows (couples_rows): "
                f"set num_microbatches to 1"
            )


def init(program: Program, key: Key, batch: Batch) -> TrainState:
    """Returns a fresh state.

    Only the shapes of `batch` matter unless the model initializes a variable by the values, as
    `jdl.layers.Whitening` does. It sees them after the transforms, without augmentation.
    """
    init_key, run_key = jax.random.split(key)
    batch = with_row_keys(transform(program, batch, None), run_key)
    with observe() as observed:
        variables = program.task.init(program.model, init_key, batch)
        variables = init_frozen(program.task, variables, init_key, batch)
    variables = without_sown(variables, observed.sown)
    params = variables.pop("params", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=params,
        collections=variables,
        opt_state=program.optimizer.init(float32(params)),
    )


def check_training(program: Program, batch: Batch) -> None:
    """Traces the loss of a batch without computing it, and checks the model's layers.

    Args:
      program: what will be trained.
      batch: arrays, of which the shapes matter, or these alone.

    Raises:
      UserError: a dropout or batch normalization layer is never active in training.
    """
    task = program.task
    # A game has no single loss; otherwise the backward pass calls no further layers.
    trained = task.loss if type(task).gradient is Task.gradient else None

    def trace(key: Key, batch: Batch) -> Any:
        state = init(program, key, batch)
        keys = jax.random.split(key, len(batch["mask"]))
        batch = with_row_keys(transform(program, batch, keys), keys)
        if trained is None:
            return task.gradient(program.model, state, batch, key)
        return trained(program.model, state.params, state, batch, key)[:3]

    with observe() as observed:
        jax.eval_shape(trace, jax.random.key(0), batch)
    check_active(observed, task.inactive_layers, program.model)


def update(
    program: Program, state: TrainState, batch: Batch, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on one batch.

    Totals and weights are summed over microbatches and devices before the one division, so the
    gradient is that of the whole batch however it is split. If the gradient or the loss is not
    finite, or every row is masked, parameters, collections and optimizer state stay as they are and
    only `step` advances. In a game this holds for each player: one without examples, or whose
    gradient is not finite, keeps its parameters and their optimizer state, while counters that all
    players share advance.

    Args:
      program: what to compute.
      state: the state before the step.
      batch: arrays (batch, ...); under `axis_name` the rows of this device.
      axis_name: the mapped axis over devices, under `pmap`.

    Returns:
      The state after, and the batch's metrics. `skipped` is 1 if the gradient or the loss was not
      finite; all other metrics then have a count of 0, in a game those that are not finite.
    """
    # The key never changes; folding in the step makes a resumed run draw what it would have drawn.
    key = jax.random.fold_in(state.key, state.step)
    batch, axis_name = _coupled(program, batch, axis_name)
    rows = len(batch["mask"])
    # One key per row by its index in the global batch: neither augmentation nor what a task draws
    # depends on sharding.
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    keys = fold_in_rows(key, first, rows)
    batch = with_row_keys(transform(program, batch, keys), keys)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    counts = _term_counts(program, state, batch, key, axis_name)
    compute = functools.partial(_gradient, program, counts)
    (gradients, weight, metrics), collections = _sum_over_microbatches(
        compute, program.num_microbatches, state, batch, key
    )
    if axis_name is not None:  # under a global `jit`, XLA inserts these sums itself
        gradients, weight, metrics = jax.lax.psum((gradients, weight, metrics), axis_name)
        mean = jax.lax.pmean(collections, axis_name)
        # A mean of equal numbers is not always that number.
        collections = with_frozen(program.task, mean, collections)
    # `weight` may have one scalar per player of a game, each for a subtree of the gradients.
    gradients = jax.tree.map(_divide, weight, gradients)
    gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, float32(state.params))

    loss = metrics.get("loss", Mean(jnp.zeros(()), jnp.ones(())))
    active, finite = _active(weight, gradients, loss)
    value = loss.total / jnp.maximum(loss.count, 1)

    def step() -> tuple[PyTree, PyTree, PyTree]:
        params, opt_state = _apply(program, state, active, gradients, value)
        # A player whose gradient is not finite may have spoilt any of the collections.
        kept = (
            collections
            if not _is_game(active)
            else jax.tree.map(functools.partial(jnp.where, finite), collections, state.collections)
        )
        return params, kept, opt_state

    before = (state.params, state.collections, state.opt_state)
    is_active = jnp.stack(jax.tree.leaves(active)).any()
    params, collections, opt_state = jax.lax.cond(is_active, step, lambda: before)
    kept = {name: finite | (_is_game(active) & _is_finite(x)) for name, x in metrics.items()}
    metrics = {
        name: jax.tree.map(lambda leaf, name=name: jnp.where(kept[name], leaf, 0), each)
        for name, each in metrics.items()
    }
    metrics["skipped"] = Mean(1.0 - finite, jnp.ones(()))
    new = {"params": params, "collections": collections, "opt_state": opt_state}
    return dataclasses.replace(state, step=state.step + 1, **new), metrics


def _is_game(weight: PyTree) -> bool:
    """Whether a weight, or what else there is of each player, is a tree and not one scalar."""
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(weight))


def _active(weight: PyTree, gradients: PyTree, loss: Any) -> tuple[PyTree, jax.Array]:
    """Returns which players take this step, shaped like `weight`, and whether all is finite."""
    finite = _is_finite((gradients, loss))
    own = jax.tree.map(lambda _: finite, weight)
    if _is_game(weight):
        # The loss does not decide here, since it may be another player's.
        own = jax.tree.map(lambda _, gradient: _is_finite(gradient), weight, gradients)
        finite = jnp.stack(jax.tree.leaves(own)).all()
    # Without examples the gradient is zero; momentum and decay would still move parameters.
    return jax.tree.map(lambda w, own: jnp.any(w > 0) & own, weight, own), finite


def _is_finite(tree: PyTree) -> jax.Array:
    finite = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        finite &= jnp.isfinite(leaf).all()
    return finite


def evaluate(
    program: Program, state: TrainState, batch: Batch, axis_name: str | None = None
) -> Metrics:
    """Returns the mergeable metrics of a batch, in evaluation mode."""
    batch, axis_name = _coupled(program, batch, axis_name)
    batch, seeds = pop_row_seeds(batch)
    batch = {**transform(program, batch, None), ROW_SEEDS: seeds}
    with tracing_errors(_shapes(batch)):
        metrics = program.task.evaluate(program.model, state, batch)
    return sum_over_devices(metrics, axis_name)


def predict(program: Program, state: TrainState, batch: Batch) -> Any:
    """Returns the task's prediction for each row of a batch, or what `program.layer` reads."""
    batch, seeds = pop_row_seeds(batch)
    batch = {**transform(program, batch, None), ROW_SEEDS: seeds}
    if program.layer is None:
        return program.task.predict(program.model, state, batch)
    with capture_input(program.layer) as captured:
        program.task.predict(program.model, state, batch)
    return captured.value().astype(jnp.float32)


def host_outputs(program: Program, state: TrainState, batch: Batch) -> Any:
    """Returns what the task computes metrics of on the host, for each row of a batch."""
    batch, seeds = pop_row_seeds(batch)
    batch = {**transform(program, batch, None), ROW_SEEDS: seeds}
    return program.task.host_outputs(program.model, state, batch)


def sample(program: Program, state: TrainState, batch: Batch) -> Any:
    """Returns the task's sample for each row of a batch, or its image with changes.

    A batch with the array `STRENGTH` holds images to edit, and a mask where some pixels are kept.
    """
    batch, seeds = pop_row_seeds(batch)
    batch = {**transform(program, batch, None), ROW_SEEDS: seeds}
    task: Any = program.task
    if STRENGTH in batch:
        return task.edit(program.model, state, batch)
    if task.unconditional:
        # Zeros stand for images, whose shape is read, but not for classes, which are then drawn.
        given = {task.labels: batch[LABEL]} if LABEL in batch else {}
        batch = {name: batch[name] for name in (*task.input_names, "mask", ROW_SEEDS)} | given
    return task.sample(program.model, state, batch)


def transform(program: Program, batch: Batch, keys: jax.Array | None) -> dict[str, Any]:
    """Applies the device transforms; `keys` (batch,) are given in training only.

    Raises:
      UserError: a transform fails, or drops `mask`.
    """
    seen = Seen()
    for index, each in enumerate(program.transforms):
        name = f"data.device_transforms.{index} ({type(each).__name__})"
        with errors_of(f"{name} fails on examples of shapes {_shapes(batch)}"):
            new, seen = seen.apply(each, batch, keys)
        if "mask" not in new:
            raise UserError(f"{name} drops the array 'mask': return it with the others")
        batch = new
    return dict(batch)


def _coupled(program: Program, batch: Batch, axis_name: str | None) -> tuple[Batch, str | None]:
    """Returns the rows of all devices, if the task couples them: each then computes the whole."""
    if axis_name is None or not program.task.couples_rows:
        return batch, axis_name
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
    return jax.tree.map(gather, dict(batch)), None


def _sum_over_microbatches(
    compute: Callable[[TrainState, Batch, Key], tuple[PyTree, PyTree]],
    count: int,
    state: TrainState,
    batch: Batch,
    key: Key,
) -> tuple[PyTree, PyTree]:
    """Returns the sums of what `compute` returns for each microbatch, and the last collections."""
    if count == 1:
        return compute(state, batch, key)
    # (batch, ...) to (count, batch / count, ...). Microbatch i takes rows i, i + count, ...: rows
    # that follow each other are on one device, so each microbatch stays sharded over all devices.
    micro = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x) // count, count, *x.shape[1:]), 1, 0), dict(batch)
    )

    def body(carry: Any, index: jax.Array) -> tuple[Any, None]:
        collections, sums = carry
        part = jax.tree.map(lambda x: x[index], micro)
        before = dataclasses.replace(state, collections=collections)
        new, collections = compute(before, part, jax.random.fold_in(key, index))
        return (collections, new if sums is None else jax.tree.map(jnp.add, sums, new)), None

    # The first is outside of the scan, since it gives the structure of the sums.
    carry, _ = body((state.collections, None), jnp.zeros((), jnp.int32))
    collections, sums = scan_or_unroll(body, carry, jnp.arange(1, count))[0]
    return sums, collections


def _term_counts(
    program: Program, state: TrainState, batch: Batch, key: Key, axis_name: str | None
) -> PyTree:
    """Returns the count of each of the task's loss terms, over microbatches and devices.

    They divide the terms before these are added, so that one backward pass does for all. Counts
    that depend on the batch alone cost nothing, since XLA drops the rest of this forward pass.
    """
    if not program.task.loss_terms:
        return None

    def counts(state: TrainState, part: Batch, key: Key) -> tuple[PyTree, PyTree]:
        with observe() as observed, tracing_errors(_shapes(part)):
            found, collections = program.task.term_counts(program.model, state, part, key)
        collections = without_sown(collections, observed.sown)
        return found, with_frozen(program.task, collections, state.collections)

    found, _ = _sum_over_microbatches(counts, program.num_microbatches, state, batch, key)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an example by name, for errors."""
    own = ("mask", ROW_KEYS, ROW_SEEDS, DENOMINATORS)
    return {name: jnp.shape(value)[1:] for name, value in batch.items() if name not in own}


def _gradient(
    program: Program, counts: PyTree, state: TrainState, batch: Batch, key: Key
) -> tuple[tuple[PyTree, PyTree, Metrics], PyTree]:
    """Returns the task's gradients, weight and metrics, and collections without sown values."""
    if counts is not None:
        batch = {**batch, DENOMINATORS: counts}
    with observe() as observed, tracing_errors(_shapes(batch)):
        gradients, weight, collections, metrics = program.task.gradient(
            program.model, state, batch, key
        )
    collections = without_sown(collections, observed.sown)
    collections = with_frozen(program.task, collections, state.collections)
    check_variables(collections, state.collections)
    if program.is_frozen is not None:
        # XLA then drops the part of the backward pass that only these need.
        gradients = jax.tree_util.tree_map_with_path(
            functools.partial(_unless_frozen, program.is_frozen), gradients
        )
    return (gradients, weight, metrics), collections


def _unless_frozen(is_frozen: Callable[[str], bool], path: Any, gradient: jax.Array) -> jax.Array:
    return jnp.zeros_like(gradient) if is_frozen(path_name(path)) else gradient


def scan_or_unroll(body: Any, carry: Any, xs: PyTree) -> tuple[Any, Any]:
    """`jax.lax.scan`, unrolled if `body` convolves on a CPU, where a rolled loop is ~30x slower."""
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    rolled = functools.partial(jax.lax.scan, body)
    if not _convolves(jax.make_jaxpr(body)(carry, first)):
        return rolled(carry, xs)
    unrolled = functools.partial(rolled, unroll=True)
    return jax.lax.platform_dependent(carry, xs, cpu=unrolled, default=rolled)


def _convolves(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside of it, has a convolution."""
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    for equation in jaxpr.eqns:
        inner = (x for x in jax.tree.leaves(equation.params) if isinstance(x, kinds))
        name = equation.primitive.name  # XLA's, or a part of `jdl.ops.conv_general_dilated`
        if name.startswith("conv_general_dilated") or any(map(_convolves, inner)):
            return True
    return False


def float32(params: PyTree) -> PyTree:
    """Returns parameters of 16 bits as float32, in which optimizers compute; others as they are."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x, params
    )


def _divide(weight: jax.Array, gradients: PyTree) -> PyTree:
    """Returns the mean from a total; zero if the weight is zero."""
    # The inner `where` keeps 1 / 0 from being computed.
    scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    return jax.tree.map(lambda gradient: gradient * scale, gradients)


def _apply(
    program: Program, state: TrainState, active: PyTree, gradients: PyTree, value: jax.Array
) -> tuple[PyTree, PyTree]:
    """Returns new parameters and optimizer state; the old ones of players that are not active.

    Args:
      program: has the optimizer.
      state: before the step.
      active: a scalar, or a tree of scalars that is a prefix of the parameters, one per player.
      gradients: shaped like the parameters.
      value: the loss.
    """
    extra: dict[str, Any] = {"value": value}
    if _is_game(active):
        active = jax.tree.map(lambda a, own: jax.tree.map(lambda _: a, own), active, gradients)
        # A norm over all gradients must not carry NaN from one player to the others.
        gradients = jax.tree.map(lambda a, g: jnp.where(a, g, 0), active, gradients)
        extra["active"] = active
    with errors_of("the optimizer cannot update the parameters"):
        updates, opt_state = program.optimizer.update(
            gradients, state.opt_state, float32(state.params), **extra
        )
    new = (optax.apply_updates(state.params, updates), opt_state)
    return _keep_idle(active, new, (state.params, state.opt_state)) if "active" in extra else new


def _keep_idle(
    active: PyTree, new: tuple[PyTree, PyTree], old: tuple[PyTree, PyTree]
) -> tuple[PyTree, PyTree]:
    """Returns new parameters and optimizer state, but the old ones of players that are idle.

    Args:
      active: for each parameter whether its player takes this step.
      new: parameters and optimizer state after the update.
      old: the same before it.
    """
    # An array of the optimizer belongs to the parameter whose path its own path ends in.
    players = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(active)}

    def choose(path: jax.tree_util.KeyPath, new: jax.Array, old: jax.Array) -> jax.Array:
        parts = path_name(path).split(".")
        suffixes = (".".join(parts[start:]) for start in range(1, len(parts)))
        owner = next((suffix for suffix in suffixes if suffix in players), None)
        return new if owner is None else jnp.where(players[owner], new, old)

    return jax.tree_util.tree_map_with_path(choose, new, old)
