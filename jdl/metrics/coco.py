"""COCO's average precision of detections, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

AREAS = ("all", "small", "medium", "large")
"""Sizes of true boxes: any, below 32 x 32 pixels, from there to 96 x 96, above."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision of detections by recall, as pycocotools accumulates it.

    Attributes:
      precision: (IoU thresholds, 101 recalls, classes, `AREAS`) largest precision at that recall or
        a higher one; NaN for classes without true boxes of the size.
    """

    precision: np.ndarray

    def metrics(self) -> dict[str, Any]:
        """Returns average precisions as fractions, without those that are of no true box.

        `map` is the mean over IoU thresholds 0.5, 0.55, ..., 0.95 and classes, `map_50` and
        `map_75` those of one threshold; `map_small`, `map_medium` and `map_large` of boxes of a
        size. `ap` and `ap_50`, (classes,), are of each class, NaN where it has no true boxes.
        """
        sizes = dict(zip(AREAS, np.moveaxis(self.precision, 3, 0), strict=True))
        every = sizes.pop("all")
        parts = {"map": every, "map_50": every[0], "map_75": every[5]}
        parts |= {f"map_{size}": precision for size, precision in sizes.items()}
        found: dict[str, Any] = {
            name: float(np.nanmean(part)) for name, part in parts.items() if _known(part)
        }
        if found:
            # Of a class all recalls are known, or none is.
            found |= {"ap": every.mean((0, 1)), "ap_50": every[0].mean(0)}
        return found


def average_precision(
    prediction: Mapping[str, np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    crowd: np.ndarray,
    num_classes: int,
) -> PrecisionRecall:
    """Scores detections (Lin et al., 2014) by pycocotools.

    Args:
      prediction: `boxes` (images, k, 4), `scores` (images, k), `labels` (images, k); all k count.
      boxes: (images, n, 4) true boxes; these and the predicted are x0, y0, x1, y1 in pixels.
      labels: (images, n) their classes.
      mask: (images, n) False for padding.
      crowd: (images, n) True for boxes that count neither as found nor as missed.
      num_classes: number of classes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = _dataset(boxes, labels, mask, crowd, num_classes)
        truth.createIndex()
        table = _detections(prediction)
        # `loadRes` refuses an empty table.
        found: Any = truth.loadRes(table) if len(table) else COCO()
        scores = COCOeval(truth, found, "bbox")
        # Its own summary would have -1 for other limits than 100.
        scores.params.maxDets = [1, 10, prediction["scores"].shape[1]]
        scores.evaluate()
        scores.accumulate()
    precision = scores.eval["precision"][..., -1]
    return PrecisionRecall(np.where(precision == -1, np.nan, precision))


def _known(part: np.ndarray) -> bool:
    return not np.isnan(part).all()


def _dataset(
    boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray, crowd: np.ndarray, num_classes: int
) -> dict[str, Any]:
    annotations = []
    for image, item in np.argwhere(mask).tolist():
        x0, y0, x1, y1 = boxes[image, item].tolist()
        annotations.append(
            {
                "id": len(annotations) + 1,  # pycocotools takes 0 for no match
                "image_id": image,
                "category_id": int(labels[image, item]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": int(crowd[image, item]),
            }
        )
    return {
        "info": {},
        "images": [{"id": image} for image in range(len(boxes))],
        "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
        "annotations": annotations,
    }


def _detections(prediction: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns (n, 7): image, x, y, width, height, score and class, as pycocotools reads them."""
    boxes, scores, labels = (
        np.asarray(prediction[k], float) for k in ("boxes", "scores", "labels")
    )
    images = np.broadcast_to(np.arange(len(boxes))[:, None], scores.shape)
    sides = boxes[..., 2:] - boxes[..., :2]
    columns = [images[..., None], boxes[..., :2], sides, scores[..., None], labels[..., None]]
    table = np.concatenate(columns, -1).reshape(-1, 7)
    return table[table[:, 5] > 0]
