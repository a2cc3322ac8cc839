"""Language modeling: predicting the next token of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.vocabulary import check_token_ids
from jdl.errors import UserError
from jdl.metrics import BitsPerByte, Mean, Perplexity
from jdl.state import CARRY, TrainState
from jdl.tasks.base import Task
from jdl.tasks.forward import forward
from jdl.tracing import takes_argument
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """Cross-entropy of each token given those before it.

    A batch holds windows of tokens (batch, length + 1), int32, padded with -1: the model reads all
    but the last and predicts all but the first. Its `__call__(tokens, train)` returns logits
    (batch, length, vocab); with `targets` and `weights` (batch, length) it returns the weighted sum
    of cross-entropies instead, and need not hold all logits in memory. A model that takes `begins`
    also receives that array of the batch (`jdl.data.Streams`). If the batch has `segments` (batch,
    length + 1), the model receives them too, and no token is predicted from another segment
    (`jdl.data.Documents`). If it has `loss_mask` (batch, length + 1), bool, only tokens where that
    is True are predicted, such as those of answers (`jdl.data.Chats`).

    Metrics: `loss` in nats and `perplexity`, both over tokens; and `bits_per_byte` if the batch has
    `bytes` (batch,), the byte count of each window's predicted tokens.
    """

    inputs: str = "tokens"  # name of the windows in a batch
    targets: str = "tokens"  # the same: each token is predicted from those before it

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`.

        Raises:
          UserError: the model takes no `targets`, or no `segments` though the batch has them, or
            carries a state from batch to batch though the data is not streamed.
        """
        if not takes_argument(model, "targets"):
            raise UserError(
                f"{type(model).__name__} takes no targets, of which a language model gives the "
                f"cross-entropy: use one that does, such as GPT"
            )
        if "segments" in batch and not takes_argument(model, "segments"):
            raise UserError(
                f"{type(model).__name__} takes no segments, so that it would read over the borders "
                f"of packed documents: use a model that does, such as GPT, or jdl.data.Tokens"
            )
        variables = super().init(model, key, {self.inputs: batch[self.inputs][:, :-1]})
        if CARRY in variables and "begins" not in batch:
            raise UserError(
                f"{type(model).__name__} continues where the last batch ended, so its data must "
                f"come in streams: use jdl.data.Streams, or set model.carry to false"
            )
        return variables

    def batch_metrics(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Mean], dict[str, PyTree]]:
        """See `Task.batch_metrics`; the weight of `loss` is the number of tokens."""
        tokens, segments = batch[self.inputs], _segments(batch)
        known = (tokens[:, 1:] >= 0) & batch["mask"][:, None]
        if segments is not None:
            known &= segments == batch["segments"][:, 1:]
        if "loss_mask" in batch:
            known &= batch["loss_mask"][:, 1:]
        weights, tokens = known.astype(jnp.float32), jnp.maximum(tokens, 0)
        total, collections = forward(
            model, params, state.collections, tokens[:, :-1], tokens[:, 1:], weights,
            train=train, key=key, begins=batch.get("begins"), segments=segments,
        )  # fmt: skip
        count = weights.sum()
        metrics = {"loss": Mean(total, count), "perplexity": Perplexity(total, count)}
        if "bytes" in batch:
            size = jnp.where(batch["mask"], batch["bytes"], 0).sum()
            metrics["bits_per_byte"] = BitsPerByte(total, size.astype(jnp.float32))
        return metrics, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns probabilities of each next token, (batch, length, vocab) float32."""
        tokens = jnp.maximum(batch[self.inputs], 0)[:, :-1]
        logits, _ = forward(
            model, state.params, state.collections, tokens, train=False, segments=_segments(batch)
        )
        return jax.nn.softmax(logits.astype(jnp.float32))

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires token ids within the model's vocabulary."""
        super().validate_batch(batch, outputs, where)
        tokens = np.asarray(batch[self.inputs])
        check_windows(tokens, outputs.shape[-1], f"{where}: {self.inputs!r}", least=-1)


def check_windows(tokens: np.ndarray, vocab_size: int, where: str, least: int = 0) -> None:
    """Raises a UserError unless tokens are (batch, length) integers below `vocab_size`."""
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"{where} has shape {tokens.shape} and dtype {tokens.dtype}, but must be (batch, "
            f"length) integers"
        )
    check_token_ids(tokens, vocab_size, where, least=least)


def _segments(batch: Batch) -> jax.Array | None:
    """Returns the segments of the input tokens, (batch, length), or None."""
    return batch["segments"][:, :-1] if "segments" in batch else None
