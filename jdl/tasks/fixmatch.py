"""FixMatch: classification from few labels and many examples without."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.classification import Classification
from jdl.tasks.forward import forward
from jdl.tasks.terms import Terms
from jdl.tasks.views import training_view
from jdl.typing import Batch, Key, PyTree

_STRONG = 0x73747267
"""Folded into the key of the second view's forward pass."""


@dataclass(frozen=True, kw_only=True)
class FixMatch(Classification):
    """Learns the classes that the model is sure of, from a stronger augmentation (FixMatch).

    Sohn et al. (2020). The data is a `Mixture` whose labeled stream is called `labeled`, with the
    device transforms `Views(2)`, a weak augmentation of both views, and `OnViews(strong)`. The loss
    has the terms `supervised`, the cross-entropy of labeled rows in view 0 (equation 3), and
    `consistency`, of all rows the cross-entropy in view 1 with the class predicted of view 0, zero
    where its probability is below `confidence` (equation 4). As in the paper the labeled rows are
    among these. Evaluation and prediction see view 0.

    Metrics: those of `Classification` of labeled rows, `consistency`, and `confident`, the share of
    rows whose predicted class is a target.
    """

    labeled: str | None = "labeled"  # name of a bool array, as of a stream: rows with targets
    loss_terms: Terms = (("supervised", 1.0), ("consistency", 1.0))
    """Terms of the loss and their weights, see `Task`."""
    confidence: float = 0.95  # least probability of a predicted class that is a target

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.confidence < 1:
            raise UserError(
                f"task.confidence is a probability in [0, 1), not {self.confidence}: of 1 or more "
                f"no prediction would be a target"
            )
        if self.labeled is None:
            raise UserError(
                "task.labeled is None, where FixMatch learns from labeled and unlabeled rows: name "
                "the labeled stream of data.streams"
            )

    def model_inputs(
        self, model: nn.Module, batch: Batch
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the model's inputs of view 0."""
        return super().model_inputs(model, training_view(batch, self.input_names, 0))

    def further_terms(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        outputs: jax.Array,
        key: Key | None,
    ) -> dict[str, Mean]:
        """Computes `consistency` and `confident`, see `Task.further_terms`."""
        probabilities = jax.nn.softmax(jax.lax.stop_gradient(outputs.astype(jnp.float32)))
        sure = probabilities.max(-1) >= self.confidence
        strong = training_view(batch, self.input_names, 1)
        inputs, named = super().model_inputs(model, strong)
        logits, _ = forward(
            model, params, state.collections, *inputs,
            train=True, key=None if key is None else jax.random.fold_in(key, _STRONG), **named,
        )  # fmt: skip
        rows = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), probabilities.argmax(-1)
        )
        return {
            "consistency": Mean.of(sure * rows, batch["mask"]),
            "confident": Mean.of(sure.astype(jnp.float32), batch["mask"]),
        }
