"""Detection of objects as points: a heat map of centers, with an offset and a size at each."""

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.data.base import Data
from jdl.data.boxes import box_fault
from jdl.errors import UserError, install_command
from jdl.media import Images, Media, overlay
from jdl.metrics import Mean
from jdl.metrics.coco import PrecisionRecall, average_precision
from jdl.tasks.base import HostMetrics, Task
from jdl.tasks.outputs import one_array
from jdl.tasks.views import check_dense
from jdl.typing import Batch, Json

Array = jax.Array

_log = logging.getLogger(__name__)

PRIOR = 0.1
"""Probability of a center where the model's output is 0, as in focal loss (Lin et al., 2017)."""


@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Objects as points (CenterNet; Zhou et al., 2019).

    The model maps images (batch, height, width, channels) to (batch, height / stride, width /
    stride, num_classes + 4): for each cell the logit of a center of each class, the center's place
    in the cell (x, y), and the logarithm of width and height, all in cells. Training minimizes the
    penalty-reduced focal loss of the heat map, whose Gaussians have each box's aspect (Liu et al.,
    2020), and `regression_weight` times the L1 loss of the four numbers at each center, as a mean
    over boxes; an image without boxes counts as one.

    Boxes (batch, n, 4) are x0, y0, x1, y1 in pixels, with `labels` (batch, n) int32 and
    `boxes_mask` (batch, n), False for padding, as `Pad` gives it. Those that are True in an array
    `is_crowd` (batch, n) are not trained on, and in evaluation neither right nor wrong.

    Metrics: `loss`, its parts `focal` and `l1`; and for the splits in `coco` COCO's average
    precision: `map`, the mean over thresholds of 0.5 to 0.95, `map_50` and `map_75`; `map_small`,
    `map_medium` and `map_large` by the size of boxes; and by class `ap` and `ap_50`, (classes,).
    They are left out where there are no true boxes.

    `views` may mirror and flip images.
    """

    targets: str = "boxes"  # name of the boxes in a batch
    labels: str = "labels"  # name of their classes
    num_classes: int  # classes of objects
    regression_weight: float = 1.0  # of the L1 loss
    max_detections: int = 100  # most probable objects to predict of each image
    min_score: float = 0.1  # least probability of an object that is written as text
    nms_iou: float | None = None
    """Overlap with a more probable object of the class above which one is dropped. None: none is,
    since of overlapping centers only peaks are predicted."""
    coco: tuple[str, ...] = ("validation", "test")  # splits to score by pycocotools

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1 or self.max_detections < 1:
            raise UserError("Detection needs num_classes and max_detections of at least 1")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise UserError(f"task.nms_iou is an overlap in (0, 1], not {self.nms_iou}")
        check_dense(self.views, windows=False)

    def average_views(self, outputs: Array, batch: Batch) -> Array:
        """See `Task.average_views`; mirrors and flips cells and the centers' places in them."""
        total = jnp.zeros(())
        for view, own in zip(self.views, one_array(outputs, self), strict=True):
            own = view.undo(own.astype(jnp.float32))
            x, y = self.num_classes, self.num_classes + 1
            own = own.at[..., x].set(1 - own[..., x]) if view.mirror else own
            own = own.at[..., y].set(1 - own[..., y]) if view.flip else own
            total += view.weight * own
        return total / sum(view.weight for view in self.views)

    def loss_and_metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """Computes `loss`, `focal` and `l1`."""
        heat, regression = self._split(outputs)
        boxes, labels, kept = self._objects(batch)
        cells = _to_cells(boxes, outputs, self._size(batch))
        center, side = (cells[..., :2] + cells[..., 2:]) / 2, cells[..., 2:] - cells[..., :2]
        grid = jnp.array([outputs.shape[2], outputs.shape[1]])
        place = jnp.clip(jnp.floor(center), 0, grid - 1)
        target = heat_map(place, side, labels, kept, heat.shape)
        focal = focal_loss(heat, target).sum((1, 2, 3))
        wanted = jnp.concatenate([center - place, jnp.log(jnp.maximum(side, 1e-3))], -1)
        index = (place[..., 1] * grid[0] + place[..., 0]).astype(jnp.int32)
        found = jnp.take_along_axis(regression.reshape(len(heat), -1, 4), index[..., None], axis=1)
        l1 = jnp.where(kept[..., None], jnp.abs(found - wanted), 0).sum((1, 2))
        # The mean over boxes as totals and weights of rows, so that it is exact however they are
        # divided.
        counts = jnp.maximum(kept.sum(1), 1) * batch["mask"]

        def mean(values: Array) -> Mean:
            total = jnp.where(batch["mask"], values, 0).sum()
            return Mean(total, counts.sum().astype(jnp.float32))

        return {
            "loss": mean(focal + self.regression_weight * l1),
            "focal": mean(focal),
            "l1": mean(l1),
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> dict[str, Array]:
        """Returns the most probable objects of each image, by falling score.

        Those are peaks of the heat map in 3x3 cells.

        Returns:
          boxes: (batch, max_detections, 4) float32, x0, y0, x1, y1 in pixels.
          scores: (batch, max_detections) float32, 0 for what was suppressed.
          labels: (batch, max_detections) int32.
        """
        logits, regression = self._split(outputs)
        rows, height, width, classes = logits.shape
        heat = jax.nn.sigmoid(logits)
        peaks = jnp.where(heat == nn.max_pool(heat, (3, 3), (1, 1), "SAME"), heat, 0)
        count = min(self.max_detections, height * width * classes)
        scores, flat = jax.lax.top_k(peaks.reshape(rows, -1), count)
        cell = flat // classes
        found = jnp.take_along_axis(regression.reshape(rows, -1, 4), cell[..., None], axis=1)
        center = jnp.stack([cell % width, cell // width], -1) + found[..., :2]
        half = jnp.exp(jnp.minimum(found[..., 2:], 20.0)) / 2
        size = self._size(batch)
        stride = jnp.array([size[1] / width, size[0] / height] * 2)
        boxes = jnp.concatenate([center - half, center + half], -1) * stride
        boxes = jnp.clip(boxes, 0, jnp.array([size[1], size[0]] * 2, jnp.float32))
        labels = (flat % classes).astype(jnp.int32)
        if self.nms_iou is not None:
            scores = suppress(boxes, scores, labels, self.nms_iou)
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def higher_is_better(self, metric: str) -> bool | None:
        """See `Task.higher_is_better`."""
        own = metric.split("_")[0] in ("map", "ap")
        return True if own else super().higher_is_better(metric)

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether the split is in `coco`.

        Raises:
          UserError: `pycocotools` is not installed.
        """
        del data
        if split in self.coco and importlib.util.find_spec("pycocotools") is None:
            raise UserError(
                f"COCO's average precision needs the package pycocotools: "
                f"{install_command('vision')}, or set task.coco to ()"
            )
        return split in self.coco

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes COCO's average precisions; the lines are the objects as JSON."""
        names = data.output_names()
        found = self.precision_recall(prediction, batch).metrics()
        if not found:
            _log.warning("there is no object in any image of the split: map is left out")
        count = len(batch[self.targets])
        rows = [{name: leaf[i] for name, leaf in prediction.items()} for i in range(count)]
        lines = [json.dumps(self.format_prediction(row, names)["prediction"]) for row in rows]
        return HostMetrics(found, {}, lines)

    def precision_recall(self, prediction: Any, batch: Mapping[str, np.ndarray]) -> PrecisionRecall:
        """Scores the predictions for a split by pycocotools; see `compute_metrics`."""
        mask = batch[f"{self.targets}_mask"].astype(bool)
        crowd = batch.get("is_crowd", np.zeros_like(mask)).astype(bool)
        boxes, labels = batch[self.targets], batch[self.labels]
        return average_precision(prediction, boxes, labels, mask, crowd, self.num_classes)

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns class by name or number, score and box of each object above `min_score`."""
        known = len(names) == self.num_classes
        return {
            "prediction": [
                {
                    "class": names[label] if known else int(label),
                    "score": round(float(score), 4),
                    "box": [round(float(x), 2) for x in box],
                }
                for box, score, label in zip(
                    prediction["boxes"], prediction["scores"], prediction["labels"], strict=True
                )
                if score >= self.min_score
            ]
        }

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Media:
        """Draws the boxes above `min_score` over the images."""
        kept = [scores >= self.min_score for scores in samples["scores"]]
        boxes = [each[keep] for each, keep in zip(samples["boxes"], kept, strict=True)]
        labels = [each[keep] for each, keep in zip(samples["labels"], kept, strict=True)]
        names = data.output_names()
        return Images(overlay(batch[self.input_names[0]], None, boxes, labels, names))

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires padded boxes within the images, and labels of classes."""
        super().validate_batch(batch, outputs, where)
        for name in (self.labels, f"{self.targets}_mask"):
            if name not in batch:
                known = ", ".join(map(repr, sorted(batch)))
                raise UserError(
                    f"{where} has no array {name!r} (it has {known}): add Pad(size=..., "
                    f"names=({self.targets!r}, {self.labels!r})) to data.transforms"
                )
        boxes, labels = np.asarray(batch[self.targets]), np.asarray(batch[self.labels])
        if boxes.ndim != 3 or boxes.shape[2] != 4 or labels.shape != boxes.shape[:2]:
            raise UserError(
                f"{where}: {self.targets!r} has shape {boxes.shape} and {self.labels!r} "
                f"{labels.shape}, where detection needs (batch, n, 4) and (batch, n)"
            )
        mask = np.asarray(batch[f"{self.targets}_mask"]).astype(bool)
        if where == "split 'train'" and not mask.any():
            raise UserError(
                f"{where} has no object in any image: {self.targets}_mask is False everywhere; "
                f"add images with objects, or check the annotations"
            )
        wrong = mask & ((labels < 0) | (labels >= self.num_classes))
        if wrong.any():
            row, item = np.argwhere(wrong)[0]
            raise UserError(
                f"{where}: label {labels[row, item]} of box {item} at row {row} is outside "
                f"0..{self.num_classes - 1} (task.num_classes is {self.num_classes})"
            )
        height, width = np.shape(batch[self.input_names[0]])[1:3]
        for row, item in np.argwhere(mask).tolist():
            if fault := box_fault(boxes[row, item], height, width):
                raise UserError(
                    f"{where}: box {item} at row {row} is {fault}: correct it, or leave it out"
                )

    def _size(self, batch: Batch) -> tuple[int, int]:
        """Returns height and width of the images."""
        height, width = jnp.shape(batch[self.input_names[0]])[1:3]
        return height, width

    def _split(self, outputs: Any) -> tuple[Array, Array]:
        """Returns logits of centers (batch, h, w, classes) and the four numbers of each cell."""
        outputs = one_array(outputs, self).astype(jnp.float32)
        if outputs.ndim != 4 or outputs.shape[-1] != self.num_classes + 4:
            raise UserError(
                f"the model's output has shape {outputs.shape}, where detection of "
                f"{self.num_classes} classes needs (batch, height, width, {self.num_classes + 4})"
            )
        heat, regression = jnp.split(outputs, [self.num_classes], -1)
        return heat + np.log(PRIOR / (1 - PRIOR)).astype(np.float32), regression

    def _objects(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Returns boxes, labels, and which boxes are trained on."""
        kept = batch[f"{self.targets}_mask"].astype(bool)
        if "is_crowd" in batch:
            kept = kept & ~batch["is_crowd"].astype(bool)
        return batch[self.targets].astype(jnp.float32), batch[self.labels], kept


def _to_cells(boxes: Array, outputs: Array, size: tuple[int, int]) -> Array:
    """Returns boxes in cells of the outputs."""
    return boxes * jnp.array([outputs.shape[2] / size[1], outputs.shape[1] / size[0]] * 2)


def heat_map(
    place: Array, side: Array, labels: Array, kept: Array, shape: tuple[int, ...]
) -> Array:
    """Returns the targets of centers: for each class the largest of its boxes' Gaussians.

    A Gaussian is 1 at the cell of the center. Its deviation along each axis is a sixth of 0.54 of
    the side and a cell (Liu et al., 2020, equation 2; a cell keeps that of small boxes).

    Args:
      place: (batch, n, 2) column and row of the center's cell.
      side: (batch, n, 2) width and height in cells.
      labels: (batch, n) classes.
      kept: (batch, n) bool.
      shape: of the heat map, (batch, height, width, classes).
    """
    deviation = (0.54 * side + 1) / 6

    def gaussian(axis: int, count: int) -> Array:
        distance = jnp.arange(count) - place[..., axis, None]
        return jnp.exp(-((distance / deviation[..., axis, None]) ** 2) / 2)

    columns, rows = gaussian(0, shape[2]), gaussian(1, shape[1])
    classes = jax.nn.one_hot(labels, shape[3]) * kept[..., None]

    def draw(heat: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, column, label = one  # (batch, height), (batch, width), (batch, classes)
        own = row[:, :, None, None] * column[:, None, :, None] * label[:, None, None, :]
        return jnp.maximum(heat, own), None

    # One box at a time: all at once would take n heat maps of memory.
    every = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (rows, columns, classes))
    return jax.lax.scan(draw, jnp.zeros(shape), every)[0]


def focal_loss(logits: Array, target: Array) -> Array:
    """Returns the penalty-reduced focal loss (Law and Deng, 2018, equation 1) of each element.

    Args:
      logits: of centers.
      target: 1 at centers, near them in [0, 1).
    """
    probability = jax.nn.sigmoid(logits)
    at_center = (1 - probability) ** 2 * optax.sigmoid_binary_cross_entropy(logits, 1.0)
    beside = probability**2 * optax.sigmoid_binary_cross_entropy(logits, 0.0)
    return jnp.where(target == 1, at_center, (1 - target) ** 4 * beside)


def suppress(boxes: Array, scores: Array, labels: Array, max_iou: float) -> Array:
    """Returns the scores after non-maximum suppression, with shapes that do not depend on data.

    From the most probable on, a box zeroes the scores of those of its class that overlap it by more
    than `max_iou`.

    Args:
      boxes: (batch, n, 4), x0, y0, x1, y1, by falling score.
      scores: (batch, n).
      labels: (batch, n) classes.
      max_iou: intersection over union.
    """
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    area = size[..., 0] * size[..., 1]
    low = jnp.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = jnp.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    both = jnp.maximum(high - low, 0).prod(-1)  # (batch, n, n)
    union = area[:, :, None] + area[:, None, :] - both
    rivals = (both > max_iou * union) & (labels[:, :, None] == labels[:, None, :])
    rivals = jnp.triu(rivals, 1)  # of row i, those of lower scores

    def drop(index: int | Array, kept: Array) -> Array:
        return kept & ~(kept[:, index, None] & rivals[:, index])

    kept = jax.lax.fori_loop(0, boxes.shape[1], drop, jnp.ones(scores.shape, bool))
    return jnp.where(kept, scores, 0)
