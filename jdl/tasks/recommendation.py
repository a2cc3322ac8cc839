"""Recommendation: ranking the item that a user chooses next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean, Metric
from jdl.tasks.base import Task
from jdl.tasks.outputs import one_array, to_json
from jdl.tasks.randomness import row_keys
from jdl.typing import Batch, Json

NEVER = -1e9
"""Score of an item that is not recommended."""


@dataclass(frozen=True, kw_only=True)
class CatalogCoverage(Metric):
    """Share of the items that are recommended to anyone, of top lists (batch, k) of their ids."""

    higher_is_better: ClassVar[bool | None] = True
    num_items: int  # largest item; 0 is padding

    def statistics(self, prediction: Any, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns how often each item is recommended."""
        del targets
        counts = jnp.zeros(self.num_items + 1)
        weights = jnp.broadcast_to(mask[:, None].astype(jnp.float32), prediction.shape)
        return counts.at[prediction].add(weights)

    def compute(self, statistics: Any) -> float:
        """Returns the share."""
        return float((np.asarray(statistics)[1:] > 0).mean())


@dataclass(frozen=True, kw_only=True)
class NextItem(Task):
    """Ranks all items of `jdl.data.Interactions` by scores (batch, items + 1).

    Trained on the cross-entropy of the chosen item among all that the user did not choose, or with
    `bpr` on one of these, drawn uniformly (Rendle et al., 2009).

    Metrics of evaluation, of the rank among all items that the user has not seen: `hit_rate`,
    `ndcg` of the top `k` and `mrr`; of the rank among the item's `negatives`: `sampled_hit_rate`
    and `sampled_ndcg`; and `catalog_coverage`, the share of the items in any top `k`. Equal scores
    count against the item. Sampled metrics rank models otherwise than full ones (Krichene and
    Rendle, 2020): give both.
    """

    inputs: str | tuple[str, ...] = ("user", "history")  # names in a batch
    targets: str = "item"  # name of the chosen item
    objective: Literal["softmax", "bpr"] = "softmax"  # what is minimized in training
    k: int = 10  # length of the list

    def batch_metrics(
        self, model: Any, params: Any, state: Any, batch: Batch, *, train: bool, key: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Computes `loss`, and in evaluation the metrics of ranking."""
        outputs, collections = self._apply(model, params, state, batch, train=train, key=key)
        scores, mask = _unseen(one_array(outputs, self), batch), batch["mask"]
        own = jnp.take_along_axis(scores, batch[self.targets][:, None], 1)
        if not train or self.objective == "softmax":
            loss = optax.softmax_cross_entropy_with_integer_labels(scores, batch[self.targets])
        else:
            loss = jax.nn.softplus(self._negative(scores, batch) - own)[:, 0]
        metrics: dict[str, Any] = {"loss": Mean.of(loss, mask)}
        if train:
            return metrics, collections
        among = [("", self._others(scores, batch))]
        if batch["negatives"].shape[1]:  # a training split has none
            among.append(("sampled_", jnp.take_along_axis(scores, batch["negatives"], 1)))
        for prefix, others in among:
            rank = 1 + (others >= own).sum(1)
            hit = (rank <= self.k).astype(jnp.float32)
            metrics[f"{prefix}hit_rate"] = Mean.of(hit, mask)
            metrics[f"{prefix}ndcg"] = Mean.of(hit / jnp.log2(1.0 + rank), mask)
            if not prefix:
                metrics["mrr"] = Mean.of(1 / rank, mask)
        coverage = CatalogCoverage(num_items=scores.shape[1] - 1)
        top = jax.lax.top_k(scores, self.k)[1]
        metrics["catalog_coverage"] = coverage.of(top, batch[self.targets], mask)
        return metrics | dict(self.further_metrics(outputs, batch, train=train)), collections

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the `k` best items that the user has not seen, best first, (batch, k) int32."""
        return jax.lax.top_k(_unseen(one_array(outputs, self), batch), self.k)[1]

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the items by name, best first."""
        if not names:
            return {"prediction": to_json(prediction)}
        return {"prediction": [names[int(item) - 1] for item in prediction]}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires a model that knows all users and items."""
        super().validate_batch(batch, outputs, where)
        if outputs.shape[1:] != (self.k,):
            raise UserError(f"{where}: the model scores fewer than task.k = {self.k} items")

    def _others(self, scores: jax.Array, batch: Batch) -> jax.Array:
        """Returns the scores of all items but the chosen one."""
        own = jax.nn.one_hot(batch[self.targets], scores.shape[1], dtype=bool)
        return jnp.where(own, -jnp.inf, scores)

    def _negative(self, scores: jax.Array, batch: Batch) -> jax.Array:
        """Returns the score of an unseen item that is drawn uniformly, (batch, 1)."""
        allowed = (scores > NEVER) & ~jax.nn.one_hot(
            batch[self.targets], scores.shape[1], dtype=bool
        )
        logits = jnp.where(allowed, 0.0, -jnp.inf)
        drawn = jax.vmap(jax.random.categorical)(row_keys(batch), logits)
        return jnp.take_along_axis(scores, drawn[:, None], 1)


def _unseen(scores: jax.Array, batch: Batch) -> jax.Array:
    """Returns scores with `NEVER` for the padding and what was seen, by default the history."""
    scores = scores.astype(jnp.float32)
    if "seen" in batch:
        hidden = batch["seen"].at[:, 0].set(True)
    else:
        rows = jnp.arange(len(scores))[:, None]
        hidden = jnp.zeros(scores.shape, bool).at[rows, batch["history"]].set(True)
        hidden = hidden.at[:, 0].set(True)
    if hidden.shape != scores.shape:
        raise UserError(
            f"the model scores {scores.shape[1] - 1} items, the data has {hidden.shape[1] - 1}: "
            f"set model.num_items to that"
        )
    return jnp.where(hidden, NEVER, scores)
