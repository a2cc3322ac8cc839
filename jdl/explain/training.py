"""Which training examples a model's predictions come from: TracIn, nearest examples."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.explain.learned import activations
from jdl.explain.method import Request
from jdl.paths import path_name, within
from jdl.step import transform
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.trainer.opening import checkpoint_states
from jdl.trainer.run import Run
from jdl.typing import PyTree

Array = jax.Array

ROWS = 128
"""Examples whose gradients are computed at once."""


@dataclass(frozen=True)
class Influence:
    """How training examples changed the loss, by TracIn.

    Attributes:
      steps: of the checkpoints.
      own: self-influence of each training example, (examples,): large for those that the model had
        to learn by heart, such as mislabeled ones.
      loss: of each by the last checkpoint, (examples,), in the same order.
      of_rows: influence on the loss of each row, (rows, examples); above 0 for those that made it
        smaller (proponents). None: no rows were given.
      indices: of the examples in the training split, (examples,).
    """

    steps: Sequence[int]
    own: np.ndarray
    loss: np.ndarray
    of_rows: np.ndarray | None
    indices: np.ndarray


def trac_in(
    run: Run,
    indices: np.ndarray,
    rows: Mapping[str, np.ndarray] | None = None,
    modules: Sequence[str] = (),
) -> Influence:
    """Traces the influence of training examples over a run's checkpoints (Pruthi et al., 2020).

    TracInCP: the sum over the checkpoints of the learning rate there times the product of two
    examples' gradients.

    Args:
      run: with checkpoints of several steps.
      indices: of training examples.
      rows: examples with targets whose loss is traced, after the host transforms; None: only
        self-influence is computed.
      modules: paths whose parameters count; (): all, or only the last module's with rows, since
        that takes memory for a gradient of each row.

    Raises:
      UserError: there are not several checkpoints.
    """
    states = list(checkpoint_states(run))
    if len(states) < 2:
        known = f"of step {states[0][0]} alone" if states else "at no step"
        raise UserError(
            f"TracIn needs checkpoints of several steps, and {run.workdir} has one {known}: train "
            f"it with Checkpoint(every=..., keep=10) among its hooks, or use --method "
            f"nearest_examples"
        )
    # Of several optimizers, or one of Optax, each checkpoint counts alike.
    own_rate = getattr(run.experiment.optimizer, "rate", None)
    schedule = own_rate(run.steps) if own_rate else lambda step: 1.0
    if rows is not None and not modules:
        modules = (_last_module(states[-1][1].params),)
    parts = functools.partial(_gradients, _compiled(run), tuple(modules))
    pipeline, own = run.pipeline("train"), np.zeros(len(indices))
    of_rows = None if rows is None else np.zeros((len(next(iter(rows.values()))), len(indices)))
    loss = np.zeros(len(indices))
    for step, state in states:
        rate = float(schedule(max(0, step - 1)))
        rate = rate or float(schedule(max(0, step // 2)))  # a schedule that ends at 0
        wanted = None
        if rows is not None:
            wanted = np.concatenate([g for _, g in parts(state, rows)])
        begin = 0
        for chunk in (indices[i : i + ROWS] for i in range(0, len(indices), ROWS)):
            for losses, found in parts(state, pipeline.examples(chunk), wanted is None):
                place = slice(begin, begin + len(losses))
                loss[place] = losses
                begin += len(losses)
                if wanted is None:
                    own[place] += rate * found
                    continue
                own[place] += rate * (found**2).sum(1)
                assert of_rows is not None
                of_rows[:, place] += rate * wanted @ found.T
    return Influence([step for step, _ in states], own, loss, of_rows, indices)


def _last_module(params: PyTree) -> str:
    paths = [path_name(path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return "logits" if "logits" in paths else paths[-1]


def _gradients(
    compiled: Any,
    modules: tuple[str, ...],
    state: Any,
    examples: Mapping[str, np.ndarray],
    norms: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields losses, and gradients (rows, parameters) or their squared norms (rows,)."""
    count = len(next(iter(examples.values())))
    for begin in range(0, count, ROWS):
        index = np.minimum(np.arange(begin, begin + ROWS), count - 1)
        batch = {name: array[index] for name, array in examples.items()}
        batch["mask"] = np.ones(ROWS, bool)
        batch[ROW_SEEDS] = row_seeds(None, np.arange(begin, begin + ROWS))
        losses, found = compiled(modules, norms, state, batch)
        fresh = min(ROWS, count - begin)
        yield np.asarray(losses)[:fresh], np.asarray(found)[:fresh]


def _compiled(run: Run) -> Any:
    """Returns the compiled losses and gradients of rows."""
    task, model = run.program.task, run.program.model

    def each(modules: tuple[str, ...], norms: bool, state: Any, batch: Any) -> tuple[Array, Array]:
        seeds = batch.pop(ROW_SEEDS)
        batch = {**transform(run.program, batch, None), ROW_SEEDS: seeds}

        def one(row: Any) -> tuple[Array, Array]:
            row = jax.tree.map(lambda leaf: leaf[None], row)

            def loss(params: PyTree) -> Array:
                metrics, _ = task.batch_metrics(model, params, state, row, train=False)
                return metrics["loss"].total / jnp.maximum(metrics["loss"].count, 1e-12)

            value, gradient = jax.value_and_grad(loss)(state.params)
            leaves = [
                leaf.ravel()
                for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
                if not modules or within(path_name(path), modules)
            ]
            if norms:
                return value, jnp.stack([(leaf**2).sum() for leaf in leaves]).sum()
            return value, jnp.concatenate(leaves)

        return jax.vmap(one)(batch)

    return jax.jit(each, static_argnums=(0, 1))


def nearest_examples(
    request: Request, known: Request, layer: str, count: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the training examples whose outputs of a layer are nearest to those of rows.

    Args:
      request: of the rows.
      known: of training examples.
      layer: path of a module.
      count: of examples for each row.

    Returns:
      Places among the training examples, the nearest first, and cosine similarities; (rows, count)
      each.

    Raises:
      UserError: there is no such layer.
    """
    ours, theirs = (
        activations(each, layer).reshape(each.count, -1).astype(np.float64)
        for each in (request, known)
    )
    ours, theirs = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12)
        for each in (ours, theirs)
    )
    likeness = ours @ theirs.T
    order = np.argsort(-likeness, 1, kind="stable")[:, :count]
    return order, np.take_along_axis(likeness, order, 1)
