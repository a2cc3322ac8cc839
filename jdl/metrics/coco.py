"""COCO's average precision of detections, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np


def average_precision(
    prediction: Mapping[str, np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    crowd: np.ndarray,
) -> dict[str, float]:
    """Computes the average precision of detections (Lin et al., 2014) as pycocotools does.

    Args:
      prediction: `boxes` (images, k, 4), `scores` (images, k), `labels` (images, k).
      boxes: (images, n, 4) true boxes; these and the predicted are x0, y0, x1, y1 in pixels.
      labels: (images, n) their classes.
      mask: (images, n) False for padding.
      crowd: (images, n) True for boxes that count neither as found nor as missed.

    Returns:
      `map`, the mean over IoU thresholds 0.5, 0.55, ..., 0.95 and classes, `map_50` and `map_75`,
      as fractions; nothing if there are no true boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = _dataset(boxes, labels, mask, crowd)
        truth.createIndex()
        found = _detections(prediction)
        if not truth.anns or not len(found):
            return dict.fromkeys(("map", "map_50", "map_75"), 0.0) if truth.anns else {}
        scores = COCOeval(truth, truth.loadRes(found), "bbox")
        scores.params.maxDets = [1, 10, prediction["scores"].shape[1]]
        scores.evaluate()
        scores.accumulate()
    # (thresholds, recalls, classes, areas, limits): -1 for classes without true boxes.
    precision = scores.eval["precision"][:, :, :, 0, -1]
    values = {"map": precision, "map_50": precision[0], "map_75": precision[5]}
    return {k: float(v[v > -1].mean()) for k, v in values.items() if (v > -1).any()}


def _dataset(
    boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray, crowd: np.ndarray
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
    classes = sorted({each["category_id"] for each in annotations})
    return {
        "info": {},
        "images": [{"id": image} for image in range(len(boxes))],
        "categories": [{"id": label, "name": str(label)} for label in classes],
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
