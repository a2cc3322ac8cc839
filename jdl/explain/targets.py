"""Named scalars: what of a model's outputs is explained, for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError, nearest
from jdl.ops import resize_bilinear
from jdl.tasks import (
    AnomalyDetection,
    BinaryClassification,
    Detection,
    MaskedLanguageModeling,
    QuantileForecast,
    Task,
)
from jdl.tasks.detection import PRIOR
from jdl.typing import Batch

Array = jax.Array


@dataclass(frozen=True)
class Target:
    """A scalar of each row's outputs, which explanations attribute to the inputs.

    A subclass defines `resolve` and `score`; an own one is passed as `target`.
    """

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns arrays (batch, ...) that `score` reads, and the scalar's name for each row.

        Args:
          task: of the model.
          prediction: what the task predicts for the rows.
          batch: the rows.
          names: of classes or targets; empty if they have none.

        Raises:
          UserError: the prediction has no such scalar.
        """
        raise NotImplementedError

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """Returns the scalar of each row, (batch,) float32, differentiable in `outputs`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Class(Target):
    """The logit of a class; of a binary classifier the logit's negative is that of class 0."""

    label: str | int | None = None  # its name or number; None: the predicted class of each row

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del batch
        if isinstance(task, BinaryClassification):
            prediction = np.stack([1 - prediction, prediction], 1)
        count = prediction.shape[1]
        label = number(self.label, names, count, "class")
        labels = prediction.argmax(1) if label is None else np.full(len(prediction), label)
        return {"label": labels.astype(np.int32)}, [
            _named(i, names, count) for i in labels.tolist()
        ]

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        del batch
        outputs = outputs.astype(jnp.float32)
        if isinstance(task, BinaryClassification):
            return outputs[:, 0] * (2 * arrays["label"] - 1)
        return jnp.take_along_axis(outputs, arrays["label"][:, None], 1)[:, 0]


@dataclass(frozen=True)
class Pixels(Target):
    """The mean logit of a class over a set of pixels of a segmentation."""

    label: str | int | None = None  # None: the most frequent predicted class but 0 of each image
    box: tuple[int, int, int, int] | None = None
    """x0, y0, x1, y1; None: the pixels that are predicted to be of the class, or all if none is."""

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, batch
        rows, height, width, count = prediction.shape
        label = number(self.label, names, count, "class")
        classes = prediction.argmax(-1)
        masks = np.zeros((rows, height, width), bool)
        labels = np.zeros(rows, np.int32)
        for row, found in enumerate(classes):
            counts = np.bincount(found.ravel(), minlength=count)
            common = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
            labels[row] = common if label is None else label
            if self.box is None:
                own = found == labels[row]
                masks[row] = own if own.any() else True
            else:
                x0, y0, x1, y1 = self.box
                masks[row, y0:y1, x0:x1] = True
        if not masks.any((1, 2)).all():
            raise UserError(f"the box {self.box} has no pixel of images of {height}x{width}")
        where = "" if self.box is None else "@" + ",".join(map(str, self.box))
        named = [f"{_named(i, names, count)}{where}" for i in labels.tolist()]
        return {"label": labels, "pixels": masks}, named

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        del batch
        mask = arrays["pixels"]
        logits = resize_bilinear(outputs.astype(jnp.float32), (mask.shape[1], mask.shape[2]))
        own = jnp.take_along_axis(logits, arrays["label"][:, None, None, None], 3)[..., 0]
        return (own * mask).sum((1, 2)) / mask.sum((1, 2))


@dataclass(frozen=True)
class Box(Target):
    """The logit of a detected object's center, in the cell and class in which it was found."""

    index: int = 0  # of the detected object, the most probable first

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        assert isinstance(task, Detection)
        count = prediction["scores"].shape[1]
        if not 0 <= self.index < count:
            raise UserError(f"there is no box {self.index}: the detector gives {count} an image")
        boxes, labels = prediction["boxes"][:, self.index], prediction["labels"][:, self.index]
        height, width = batch[task.input_names[0]].shape[1:3]
        center = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([width, height])
        shown = [
            f"{_named(label, names, task.num_classes)} at ({x:.0f}, {y:.0f})"
            for label, (x, y) in zip(
                labels.tolist(), (center * np.array([width, height])).tolist(), strict=True
            )
        ]
        return {"center": center.astype(np.float32), "label": labels, "box": boxes}, shown

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        del batch, task
        rows, height, width, _ = outputs.shape
        size = jnp.array([width, height])
        x, y = jnp.clip((arrays["center"] * size).astype(jnp.int32), 0, size - 1).T
        prior = np.log(PRIOR / (1 - PRIOR)).astype(np.float32)
        return outputs[jnp.arange(rows), y, x, arrays["label"]].astype(jnp.float32) + prior


@dataclass(frozen=True)
class Output(Target):
    """One number of the prediction: a forecast step, a regressed value, a feature, a score.

    Of quantiles it is the median.
    """

    index: str | int | None = None  # its name or flat index; None: the first

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del batch
        if not hasattr(prediction, "dtype") or prediction.dtype.kind != "f":
            raise UserError(
                f"{type(task).__name__} predicts no array of real numbers to choose from: explain "
                f"its loss (--target loss), or pass an own Target"
            )
        found = _values(task, prediction)
        chosen = number(self.index, names, found.shape[1], "output") or 0
        name = _named(chosen, names, found.shape[1])
        if isinstance(task, QuantileForecast):
            step, column = divmod(chosen, len(names) or 1)
            name = f"{names[column] if names else 'value'}, step {step + 1}"
        elif isinstance(task, AnomalyDetection):
            name = "anomaly"
        rows = len(prediction)
        return {"index": np.full(rows, chosen, np.int32)}, [name] * rows

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        found = _values(task, task.to_prediction(outputs, batch))
        return jnp.take_along_axis(found, arrays["index"][:, None], 1)[:, 0].astype(jnp.float32)


def _values(task: Task, prediction: Any) -> Any:
    """Returns the numbers of each row's prediction, (rows, n); of quantiles the medians."""
    if isinstance(task, QuantileForecast):
        prediction = prediction[..., task.quantiles.index(0.5)]
    return prediction.reshape(len(prediction), -1)


@dataclass(frozen=True)
class Item(Target):
    """The score of an item that may be recommended."""

    item: str | int | None = None  # its name or number, from 1; None: the best one of each row

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, batch
        if self.item is None:
            items = np.asarray(prediction)[:, 0]
        elif isinstance(self.item, str) and self.item in names:
            items = np.full(len(prediction), 1 + list(names).index(self.item))
        else:
            found = number(self.item, ("", *names), 1 + len(names), "item")
            items = np.full(len(prediction), found)
        shown = [names[i - 1] if 0 < i <= len(names) else str(i) for i in map(int, items)]
        return {"item": items.astype(np.int32)}, shown

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        del task, batch
        found = jnp.take_along_axis(outputs, arrays["item"][:, None], 1)
        return found[:, 0].astype(jnp.float32)


@dataclass(frozen=True)
class Token(Target):
    """The logit of a token at a position: of a text's next token, or of a masked one."""

    position: int | None = None  # of the outputs; None: the last with a known token
    token: int | None = None  # its id; None: the most probable

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del names
        rows, length, vocab = prediction.shape
        if isinstance(task, MaskedLanguageModeling):
            last = np.zeros(rows, np.int32)
        else:
            last = (np.asarray(batch[task.input_names[0]])[:, 1:] >= 0).sum(1) - 1
        if self.position is not None and not -length <= self.position < length:
            raise UserError(f"there is no position {self.position} among {length} predictions")
        if self.token is not None and not 0 <= self.token < vocab:
            raise UserError(f"there is no token {self.token}: the model knows {vocab}")
        places = last if self.position is None else np.full(rows, self.position % length)
        chosen = prediction[np.arange(rows), places].argmax(-1)
        tokens = chosen if self.token is None else np.full(rows, self.token)
        arrays = {"position": places.astype(np.int32), "token": tokens.astype(np.int32)}
        return arrays, [f"token {t} at {p}" for p, t in zip(places, tokens, strict=True)]

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        del task, batch
        rows = jnp.arange(len(outputs))
        return outputs[rows, arrays["position"], arrays["token"]].astype(jnp.float32)


PREFIX = "explained_prefix"
"""Name, in a batch of a translation, of the tokens before each of those that were translated."""


@dataclass(frozen=True)
class Word(Target):
    """The logit of a token of the translation, given the source and the tokens before it."""

    position: int = 0  # of the token in the translation

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, batch, names
        if not 0 <= self.position < prediction.shape[1]:
            raise UserError(
                f"there is no word {self.position} in translations of {prediction.shape[1]} tokens"
            )
        tokens = prediction[:, self.position].astype(np.int32)
        places = np.full(len(tokens), self.position, np.int32)
        return {"position": places, "token": tokens}, [f"token {t}" for t in tokens]

    score = Token.score


@dataclass(frozen=True)
class Recognized(Target):
    """The logit of a recognized token at the frame at which it is recognized."""

    index: int = 0  # of the token in the transcript; of shorter ones it is the last token

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, batch, names
        tokens, frames = prediction["tokens"], prediction["frames"]
        if not 0 <= self.index < tokens.shape[1]:
            raise UserError(f"there is no token {self.index} in transcripts of {tokens.shape[1]}")
        # Where nothing is recognized, the first frame's blank.
        last = np.maximum((tokens > 0).sum(1) - 1, 0)
        place, rows = np.minimum(self.index, last), np.arange(len(tokens))
        token, frame = tokens[rows, place], frames[rows, place]
        arrays = {"position": frame.astype(np.int32), "token": token.astype(np.int32)}
        return arrays, [f"token {t} at frame {f}" for t, f in zip(token, frame, strict=True)]

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        return Token().score(task, outputs[0], batch, arrays)


@dataclass(frozen=True)
class Loss(Target):
    """The negative loss of each row by the task, for tasks without another scalar."""

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, prediction, names
        return {}, ["-loss"] * len(batch["mask"])


def number(label: str | int | None, names: Sequence[str], count: int, kind: str) -> int | None:
    """Returns the number of a class or output, given by name or number; None stays None.

    Raises:
      UserError: there is none; suggests the nearest name.
    """
    if label is None:
        return None
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    index = int(label) if isinstance(label, int) or label.isdecimal() else -1
    if not 0 <= index < count:
        known = ", ".join(names) if 0 < len(names) <= 20 else f"0 to {count - 1}"
        hint = nearest(str(label), names)
        raise UserError(f"there is no {kind} {label!r} to explain (there are {known}){hint}")
    return index


def _named(index: int, names: Sequence[str], count: int) -> str:
    return names[index] if len(names) == count else str(index)
