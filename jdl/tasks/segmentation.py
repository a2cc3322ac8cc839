"""Segmentation: one of several classes per pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.media import Images, Media, overlay
from jdl.metrics import IoU, Mean, MeanIoU
from jdl.ops import resize_bilinear
from jdl.tasks.base import Task
from jdl.tasks.classification import check_class_weights
from jdl.tasks.outputs import one_array
from jdl.tasks.pixel_losses import CrossEntropy, PixelLoss
from jdl.tasks.views import average_pixels, check_dense
from jdl.typing import Batch, Json


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Trains a class for each pixel on logits (batch, height, width, classes).

    Targets are classes (batch, height, width) or (batch, height, width, 1), of the images' size;
    logits of a smaller one are resized to it bilinearly. Pixels of `ignored_class` count in neither
    losses nor metrics. Metrics, over pixels: `loss`, which training minimizes; `accuracy`; and in
    evaluation `mean_iou` and `iou` by class, (classes,). Of several `losses`, `loss_terms` has the
    weights, as in `losses=(CrossEntropy(), Dice())` with `loss_terms=(("cross_entropy", 1.0),
    ("dice", 0.5))`; each is then a metric, too.

    `views` may mirror and flip images, or see windows of them (`sliding_windows`).
    """

    targets: str = "segmentation_mask"  # name of the masks in a batch
    ignored_class: int | None = None  # id of pixels that do not count, such as 255
    class_weights: tuple[float, ...] = ()  # weight of each class in the losses; (): all 1
    losses: tuple[PixelLoss, ...] = (CrossEntropy(),)  # what training minimizes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_class_weights(self.class_weights)
        check_dense(self.views, windows=True)
        if not self.losses or not all(isinstance(each, PixelLoss) for each in self.losses):
            raise UserError(
                f"task.losses needs losses of jdl.tasks, such as CrossEntropy(), not {self.losses}"
            )
        names = ", ".join(f"({each.name!r}, 1.0)" for each in self.losses)
        if len(self.losses) > 1 and not self.loss_terms:
            raise UserError(f"task.losses has several: weigh them, as task.loss_terms=({names})")

    def loss_and_metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, or each of several losses, and `accuracy`."""
        logits, targets = self._logits(outputs, batch), self.target(batch)
        classes = logits.shape[-1]
        counted = jnp.broadcast_to(batch["mask"][:, None, None], targets.shape).astype(bool)
        if self.ignored_class is not None:
            counted = counted & (targets != self.ignored_class)
        # The class -1 has no one-hot.
        true = jax.nn.one_hot(jnp.where(counted, targets, -1), classes)
        weights = jnp.asarray(self.class_weights or (1.0,) * classes, jnp.float32)
        found = {each.name: each(logits, true, weights) for each in self.losses}
        if not self.loss_terms:
            found = {"loss": found[self.losses[0].name]}
        right = (logits.argmax(-1) == targets).astype(jnp.float32)
        return {**found, "accuracy": Mean.of(right, counted)}

    def average_views(self, outputs: Any, batch: Batch) -> jax.Array:
        """See `Task.average_views`: logits of the images' size, each pixel's over its views."""
        outputs = one_array(outputs, self).astype(jnp.float32)
        size = self._size(batch)
        sizes = [view.window[2:] if view.window else size for view in self.views]
        each = [resize_bilinear(own, size) for own, size in zip(outputs, sizes, strict=True)]
        return average_pixels(self.views, each, size)

    def further_metrics(self, outputs: Any, batch: Batch, *, train: bool) -> dict[str, Any]:
        """Computes `metrics`, and in evaluation `mean_iou` and `iou`."""
        found = super().further_metrics(outputs, batch, train=train)
        if train:
            return found
        prediction, targets = self.to_prediction(outputs, batch), self.target(batch)
        own = (MeanIoU(ignored_class=self.ignored_class), IoU(ignored_class=self.ignored_class))
        return {m.name: m.of(prediction, targets, batch["mask"]) for m in own} | found

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns class probabilities, (batch, height, width, classes) float32."""
        return jax.nn.softmax(self._logits(outputs, batch))

    def target(self, batch: Batch) -> jax.Array:
        """Returns classes, (batch, height, width) int32."""
        targets = batch[self.targets]
        return (targets[..., 0] if targets.ndim == 4 else targets).astype(jnp.int32)

    def higher_is_better(self, metric: str) -> bool | None:
        """See `Task.higher_is_better`."""
        return True if metric == "mean_iou" else super().higher_is_better(metric)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the share of the image's pixels of each class that occurs, by name or number."""
        classes, counts = np.unique(np.argmax(prediction, -1), return_counts=True)
        known = len(names) == prediction.shape[-1]
        return {
            "prediction": {
                names[c] if known else str(c): round(int(n) / counts.sum(), 6)
                for c, n in zip(classes.tolist(), counts, strict=True)
            }
        }

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Media:
        """Draws the most probable class of each pixel over the images, class 0 left as it is."""
        del data
        return Images(overlay(batch[self.input_names[0]], masks=np.argmax(samples, -1)))

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires masks of the images' size with ids of classes that the model predicts."""
        super().validate_batch(batch, outputs, where)
        if len(outputs.shape) != 4:
            raise UserError(
                f"the model's output has shape {outputs.shape}, where segmentation needs logits of "
                f"shape (batch, height, width, classes)"
            )
        masks, classes = np.asarray(batch[self.targets]), outputs.shape[-1]
        if classes == 1:
            raise UserError(
                "the model has one output for each pixel, and one class is always right: give it "
                "two or more, such as background and object"
            )
        size = np.shape(batch[self.input_names[0]])[1:3]
        if masks.shape[1:] not in (size, (*size, 1)) or masks.dtype.kind not in "iu":
            raise UserError(
                f"{where}: {self.targets!r} has shape {masks.shape[1:]} and dtype {masks.dtype}, "
                f"where images of {size[0]}x{size[1]} pixels need one integer per pixel"
            )
        check_class_weights(self.class_weights, classes)
        wrong = (masks < 0) | (masks >= classes)
        if self.ignored_class is not None:
            wrong &= masks != self.ignored_class
            if where == "split 'train'" and (masks == self.ignored_class).all():
                raise UserError(
                    f"{where}: every pixel of {self.targets!r} is of the ignored class "
                    f"{self.ignored_class}: correct the masks or task.ignored_class"
                )
        if wrong.any():
            row, y, x, *_ = np.unravel_index(int(np.argmax(wrong)), masks.shape)
            raise UserError(
                f"{where}: {self.targets!r} has the class {masks[wrong][0]} at row {row}, pixel "
                f"({y}, {x}), outside 0..{classes - 1} (the model has {classes} outputs): correct "
                f"it, or set task.ignored_class"
            )

    def _logits(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns logits of the images' size, float32."""
        return resize_bilinear(one_array(outputs, self).astype(jnp.float32), self._size(batch))

    def _size(self, batch: Batch) -> tuple[int, int]:
        """Returns height and width of the images."""
        height, width = jnp.shape(batch[self.input_names[0]])[1:3]
        return height, width
