"""Losses of several terms, each with its own weight and denominator."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jdl.errors import UserError, nearest
from jdl.metrics import Mean, SumOfMeans
from jdl.typing import Batch

DENOMINATORS = "denominators"
"""Name, in the batch that a task's loss receives, of the counts of its terms in the whole batch."""

ROWS = "rows"
"""Among these, the number of unmasked rows."""

SUPERVISED = "supervised"
"""Name of the term that is the `loss` of `Task.loss_and_metrics`."""

SOWN = "sown"
"""Name of the term that a model sows."""

Terms = tuple[tuple[str, float], ...]
"""Pairs of the name of a metric, which is a `Mean`, and its weight in the loss."""


def check_terms(terms: Any) -> None:
    """Raises a UserError unless these are pairs of different names and finite weights."""
    form = f"task.loss_terms are pairs of a metric and its weight, not {terms!r:.60}"
    try:
        names = [name for name, _ in terms]
        weights = [float(weight) for _, weight in terms]
    except (TypeError, ValueError) as error:
        raise UserError(form) from error
    if not all(isinstance(name, str) for name in names) or not all(map(math.isfinite, weights)):
        raise UserError(form)
    for name in names:
        if names.count(name) > 1 or name in ("loss", ROWS, SOWN):
            problem = "twice" if names.count(name) > 1 else "as a term"
            raise UserError(f"task.loss_terms has {name!r} {problem}: give it another name")


def combine(terms: Terms, metrics: Mapping[str, Any]) -> SumOfMeans:
    """Returns the loss that terms add up to.

    Raises:
      UserError: a term is not among the metrics, or is no `Mean`.
    """
    if "loss" in metrics:
        raise UserError(
            "the task returns a metric 'loss', as which task.loss_terms are added: rename it"
        )
    means = []
    for name, weight in terms:
        mean = metrics.get(name)
        if not isinstance(mean, Mean):
            known = ", ".join(each for each, x in metrics.items() if isinstance(x, Mean))
            problem = "is no Mean" if name in metrics else "is not computed"
            raise UserError(
                f"task.loss_terms: the metric {name!r} {problem} (those that are: {known}): return "
                f"it from loss_and_metrics{nearest(name, metrics)}"
            )
        means.append(Mean(weight * mean.total, mean.count))
    return SumOfMeans(tuple(means))


def counts(terms: Terms, metrics: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
    """Returns the counts of terms in a batch, and its number of rows."""
    found = {name: metrics[name].count for name, _ in terms}
    return {**found, ROWS: batch["mask"].sum(dtype=jnp.float32)}


def total(terms: Terms, loss: SumOfMeans, whole: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the total of a part of a batch, of which the weight is its number of rows.

    Args:
      terms: of the loss.
      loss: of the part.
      whole: the counts of the whole batch.
    """
    value = jnp.zeros(())
    for (name, _), mean in zip(terms, loss.means, strict=True):
        count = jax.lax.stop_gradient(whole[name])
        value += mean.total / jnp.where(count > 0, count, 1)
    return whole[ROWS] * value
