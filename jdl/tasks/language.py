"""Language modelling: the next token of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics import Mean, Perplexity
from jdl.state import CARRY, TrainState
from jdl.tasks.base import Task, forward
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """Cross-entropy of each token given those before it.

    A batch holds windows of tokens (batch, length + 1), int32, -1 where a window is padded: the
    model reads all but the last and predicts all but the first. Its `__call__(tokens, train)` gives
    logits (batch, length, vocabulary); with `targets` and `weights` (batch, length) it gives the
    weighted sum of cross-entropies instead, so that it may do so without all logits in memory. A
    model that takes `begins` also gets that array of the batch (`jdl.data.Streams`).

    Metrics: `loss` in nats and `perplexity`, both over tokens.
    """

    inputs: str = "tokens"  # name of the windows in a batch
    targets: str = "tokens"  # the same: each token is predicted from those before it

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`.

        Raises:
          UserError: the model carries a state from batch to batch, and the data is in no order.
        """
        variables = super().init(model, key, {self.inputs: batch[self.inputs][:, :-1]})
        if CARRY in variables and "begins" not in batch:
            raise UserError(
                f"{type(model).__name__} goes on where the batch before ended, for which the data "
                f"must come in streams (jdl.data.Streams): use such, or set model.carry to false"
            )
        return variables

    def score(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Mean], dict[str, PyTree]]:
        """See `Task.score`; `loss` and `perplexity`, whose weight is the number of tokens."""
        tokens = batch[self.inputs]
        known = (tokens[:, 1:] >= 0) & batch["mask"][:, None]
        weights, tokens = known.astype(jnp.float32), jnp.maximum(tokens, 0)
        total, collections = forward(
            model, params, state.collections, tokens[:, :-1], tokens[:, 1:], weights,
            train=train, key=key, begins=batch.get("begins"),
        )  # fmt: skip
        count = weights.sum()
        return {"loss": Mean(total, count), "perplexity": Perplexity(total, count)}, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Probabilities of the token after each of the window's but the last, float32."""
        tokens = jnp.maximum(batch[self.inputs], 0)[:, :-1]
        logits, _ = forward(model, state.params, state.collections, tokens, train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    def check(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also raises for tokens that the model does not know."""
        super().check(batch, outputs, where)
        tokens, size = np.asarray(batch[self.inputs]), outputs.shape[-1]
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(
                f"{where}: {self.inputs!r} has shape {tokens.shape} and dtype {tokens.dtype}, "
                f"where language modelling needs windows of integers"
            )
        if tokens.size and not -1 <= tokens.min() <= tokens.max() < size:
            raise UserError(
                f"{where}: tokens lie between {tokens.min()} and {tokens.max()}, where the model "
                f"knows 0..{size - 1}"
            )
