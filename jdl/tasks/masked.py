"""Masked language modeling: predicting masked tokens from both sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean, Perplexity
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.forward import forward
from jdl.tasks.language import check_windows
from jdl.tracing import takes_argument
from jdl.typing import Batch, Json, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModeling(Task):
    """Cross-entropy of masked tokens given all others (Devlin et al., 2019).

    `jdl.data.MaskTokens` masks `tokens` (batch, length) and adds `mlm_positions`, `targets`
    (batch, n) int32 and `weights` (batch, n). The model's `__call__(tokens, mlm_positions=...)`
    returns logits (batch, n, vocab); with `targets` and `weights`, the weighted sum of their
    cross-entropies, and need not hold all logits in memory.

    Metrics: `loss` in nats and `perplexity` over masked tokens, and in evaluation `accuracy`.
    """

    inputs: str = "tokens"  # name of the texts in a batch
    targets: str = "tokens"  # the same: some are masked

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`.

        Raises:
          UserError: no token is masked, or the model takes no `mlm_positions`.
        """
        if "mlm_positions" not in batch:
            raise UserError(
                "masked language modelling needs hidden tokens: add jdl.data.MaskTokens() to "
                "data.device_transforms"
            )
        if not takes_argument(model, "mlm_positions"):
            raise UserError(
                f"{type(model).__name__} takes no places of hidden tokens: use a model that does, "
                f"such as BERT"
            )
        return super().init(model, key, batch)

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
        """See `Task.batch_metrics`; the weight of `loss` is the number of masked tokens."""
        weights, targets = batch["weights"] * batch["mask"][:, None], batch["targets"]
        positions, count = batch["mlm_positions"], weights.sum()
        inputs = (model, params, state.collections, batch[self.inputs])
        if train:
            total, collections = forward(
                *inputs, targets, weights, mlm_positions=positions, train=True, key=key
            )
            return _metrics(total, count), collections
        logits, collections = forward(*inputs, mlm_positions=positions, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = (logits.argmax(-1) == targets).astype(jnp.float32)
        accuracy = Mean.of(right, weights)
        return {**_metrics((losses * weights).sum(), count), "accuracy": accuracy}, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns token probabilities at the masked positions, (batch, n, vocab) float32."""
        inputs = (model, state.params, state.collections, batch[self.inputs])
        logits, _ = forward(*inputs, mlm_positions=batch["mlm_positions"], train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the most probable token at each masked position."""
        del names
        return {"prediction": np.argmax(prediction, -1).tolist()}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires token ids within the model's vocabulary."""
        super().validate_batch(batch, outputs, where)
        tokens = np.asarray(batch[self.inputs])
        check_windows(tokens, outputs.shape[-1], f"{where}: {self.inputs!r}")


def _metrics(total: jax.Array, count: jax.Array) -> dict[str, Mean]:
    return {"loss": Mean(total, count), "perplexity": Perplexity(total, count)}
