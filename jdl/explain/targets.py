"""Named scalars: what of a model's outputs is explained, for each task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError, nearest
from jdl.ops import resize_bilinear
from jdl.tasks import (
    BinaryClassification,
    Classification,
    Detection,
    Forecast,
    LanguageModeling,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    Segmentation,
    Task,
    Translation,
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
    """One number of the prediction: a forecast step, a regressed value."""

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
        count = prediction[0].size
        chosen = number(self.index, names, count, "output") or 0
        name = _named(chosen, names, count)
        rows = len(prediction)
        return {"index": np.full(rows, chosen, np.int32)}, [name] * rows

    def score(self, task: Task, outputs: Any, batch: Batch, arrays: Mapping[str, Array]) -> Array:
        """See `Target.score`."""
        found = task.to_prediction(outputs, batch)
        flat = found.reshape(len(found), -1)
        return jnp.take_along_axis(flat, arrays["index"][:, None], 1)[:, 0]


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
class Loss(Target):
    """The negative loss of each row by the task, for tasks without another scalar."""

    def resolve(
        self, task: Task, prediction: Any, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Target.resolve`."""
        del task, prediction, names
        return {}, ["-loss"] * len(batch["mask"])


def default_target(task: Task) -> Target:
    """Returns the scalar that is explained of a task's predictions unless another is named."""
    kinds: list[tuple[Any, Target]] = [
        ((Classification, BinaryClassification, MultiLabelClassification), Class()),
        (Segmentation, Pixels()),
        (Detection, Box()),
        ((Forecast, Regression), Output()),
        ((LanguageModeling, MaskedLanguageModeling), Token()),
        (Translation, Word()),
    ]
    return next((target for kind, target in kinds if isinstance(task, kind)), Loss())


def parse_target(task: Task, text: str) -> Target:
    """Returns the scalar that a word of the command line names.

    `loss`; a class by name or number, in a segmentation also `CLASS@X0,Y0,X1,Y1`; the number of a
    box or of a translated token; the name or number of an output; `POSITION` or `POSITION=TOKEN`
    of a text.

    Raises:
      UserError: it names no scalar of this task.
    """
    default = default_target(task)
    if text == "loss":
        return Loss()
    if isinstance(default, Class):
        return Class(text)
    if isinstance(default, Pixels):
        label, at, box = text.partition("@")
        corners = tuple(map(int, box.split(","))) if re.fullmatch(r"\d+(,\d+){3}", box) else None
        if at and corners is None:
            raise UserError(f"--target {text}: a box is X0,Y0,X1,Y1 in pixels, not {box!r}")
        return Pixels(label or None, corners)  # pyright: ignore[reportArgumentType]
    if isinstance(default, (Output, Loss)):
        return Output(text)
    places = re.fullmatch(r"(-?\d+)(?:=(\d+))?", text)
    if places is None or (places[2] and not isinstance(default, Token)):
        raise UserError(
            f"--target {text}: {type(task).__name__} has scalars by number, such as 0, or `loss`"
        )
    if isinstance(default, Token):
        return Token(int(places[1]), int(places[2]) if places[2] else None)
    return Box(int(places[1])) if isinstance(default, Box) else Word(int(places[1]))


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
        known = ", ".join(names) if names else f"0 to {count - 1}"
        hint = nearest(str(label), names)
        raise UserError(f"there is no {kind} {label!r} to explain (there are {known}){hint}")
    return index


def _named(index: int, names: Sequence[str], count: int) -> str:
    return names[index] if len(names) == count else str(index)
