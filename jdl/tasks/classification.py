"""Classification: one of several classes per example."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.tasks.base import Task
from jdl.tasks.calibration import ConformalSets
from jdl.tasks.labels import check_labels
from jdl.tasks.outputs import one_array
from jdl.tracing import is_zero
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Softmax cross-entropy on logits (batch, classes) with integer labels (batch,).

    Metrics: `loss`, which training minimizes, with `label_smoothing` and weighted by
    `class_weights`; `nll`, the cross-entropy without either; both in nats; and `accuracy` as a
    fraction. Where a transform mixes examples (`Mixup`), labels are class probabilities (batch,
    classes), and the largest is the true class.
    """

    label_smoothing: float = 0.0  # probability spread over all classes (Szegedy, 2016)
    class_weights: tuple[float, ...] = ()  # weight of each class's examples; (): all 1
    example_weights: str | None = None  # name of the array of their weights in `loss`; None: all 1
    conformal: ConformalSets | None = None  # sets of classes to predict; set as `calibration` is

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is a share in [0, 1), not {self.label_smoothing}")
        check_class_weights(self.class_weights)

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`."""
        weights = [self.example_weights] if self.example_weights else []
        return (*super().required_names, *weights)

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, `nll` and `accuracy`."""
        right = outputs.argmax(-1) == self.target(batch)
        return {
            "loss": self.objective(outputs, batch),
            "nll": Mean.of(self._cross_entropy(outputs, batch, 0.0), batch["mask"]),
            "accuracy": Mean.of(right.astype(jnp.float32), batch["mask"]),
        }

    def objective(self, outputs: jax.Array, batch: Batch) -> Mean:
        """Computes the training loss, a mean weighted by `class_weights`.

        Override it to train on another loss, such as the focal loss.
        """
        weights = batch["mask"]
        if self.class_weights:
            shares = as_shares(batch[self.targets], outputs.shape[-1])
            weights = weights * (shares @ jnp.asarray(self.class_weights))
        if self.example_weights is not None:
            weights = weights * batch[self.example_weights]
        return Mean.of(self._cross_entropy(outputs, batch, self.label_smoothing), weights)

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns class probabilities, (batch, classes) float32."""
        del batch
        return jax.nn.softmax(one_array(outputs, self).astype(jnp.float32))

    def target(self, batch: Batch) -> jax.Array:
        """Returns classes, (batch,); of mixed examples the more probable."""
        labels = batch[self.targets]
        return labels if labels.ndim == 1 else labels.argmax(-1)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the predicted class by name or number, its `probability`, all `probabilities`.

        With `conformal` also the classes of the `prediction_set`.
        """
        chosen = int(np.argmax(prediction))
        shares = [round(float(share), 6) for share in prediction]
        found = {
            "prediction": names[chosen] if len(names) == len(shares) else chosen,
            "probability": shares[chosen],
            "probabilities": shares,
        }
        if self.conformal is not None:
            found["prediction_set"] = self.conformal.to_json(np.asarray(prediction), names)
        return found

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires logits of rank 2 and labels that are class indices."""
        super().validate_batch(batch, outputs, where)
        if len(outputs.shape) != 2:
            raise UserError(
                f"the model's output has shape {outputs.shape}, where classification needs logits "
                f"of shape (batch, classes)"
            )
        labels, classes = np.asarray(batch[self.targets]), outputs.shape[-1]
        check_class_weights(self.class_weights, classes)
        check_labels(
            labels,
            classes,
            where,
            name=self.targets,
            task="classification",
            origin=f"the model has {classes} outputs",
            hint=" (numbers of a table are classes with data.categorical=True)",
        )

    def _cross_entropy(self, logits: jax.Array, batch: Batch, smoothing: float) -> jax.Array:
        labels = batch[self.targets]
        logits = logits.astype(jnp.float32)
        if labels.ndim == 1 and is_zero(smoothing):
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        shares = as_shares(labels, logits.shape[-1])
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(shares, smoothing))


def as_shares(labels: jax.Array, classes: int) -> jax.Array:
    """Converts labels (batch,) to one-hot (batch, classes); returns class probabilities as is."""
    return jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels


def balanced_weights(labels: np.ndarray) -> tuple[float, ...]:
    """Returns `class_weights` under which all classes contribute equally to the loss.

    `examples / (classes * examples of the class)` (King and Zeng, 2001), as in scikit-learn.

    Args:
      labels: integers (examples,) from 0; each class occurs.

    Raises:
      UserError: a class below the largest has no example.
    """
    counts = np.bincount(labels)
    if not counts.all():
        raise UserError(f"no example of class {int(np.argmin(counts))} to weigh")
    return tuple((len(labels) / (len(counts) * counts)).tolist())


def check_class_weights(weights: tuple[float, ...], classes: int | None = None) -> None:
    """Raises a UserError unless all are finite, none is negative and one is not 0.

    Args:
      weights: one of each class, or none.
      classes: their number, once it is known.
    """
    valid = all(0 <= weight < math.inf for weight in weights) and (any(weights) or not weights)
    if not valid:
        raise UserError(f"class_weights are finite and not negative, and not all 0, not {weights}")
    if weights and classes not in (None, len(weights)):
        raise UserError(
            f"task.class_weights has {len(weights)} weights, the model {classes} outputs"
        )
