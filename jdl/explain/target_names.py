"""Which scalar of a task is explained: by default, and by its name on the command line."""

import re
from typing import Any

from jdl.errors import UserError
from jdl.explain.targets import (
    Box,
    Class,
    Item,
    Loss,
    Output,
    Pixels,
    Recognized,
    Target,
    Token,
    Word,
)
from jdl.tasks import (
    CTC,
    AdversarialClassification,
    AnomalyDetection,
    BinaryClassification,
    Classification,
    Detection,
    Embedding,
    Forecast,
    LanguageModeling,
    MaskedAutoencoding,
    MaskedLanguageModeling,
    MultiLabelClassification,
    NextItem,
    QuantileForecast,
    Regression,
    Segmentation,
    Task,
    Translation,
)

CLASSIFIERS = (
    Classification, BinaryClassification, MultiLabelClassification, AdversarialClassification,
)  # fmt: skip
"""Tasks with a logit of each class."""


def default_target(task: Task) -> Target:
    """Returns the scalar that is explained of a task's predictions unless another is named."""
    kinds: list[tuple[Any, Target]] = [
        (CLASSIFIERS, Class()),
        (Segmentation, Pixels()),
        (Detection, Box()),
        ((Forecast, Regression, QuantileForecast, AnomalyDetection), Output()),
        ((Embedding, MaskedAutoencoding), Output()),
        (NextItem, Item()),
        (CTC, Recognized()),
        ((LanguageModeling, MaskedLanguageModeling), Token()),
        (Translation, Word()),
    ]
    other = Output() if task.couples_rows else Loss()  # a loss of all rows is no row's own
    return next((target for kind, target in kinds if isinstance(task, kind)), other)


def parse_target(task: Task, text: str) -> Target:
    """Returns the scalar that a word of the command line names.

    `loss`; a class or an item by name or number, in a segmentation also `CLASS@X0,Y0,X1,Y1`; the
    number of a box or of a translated or recognized token; the name or number of an output;
    `POSITION` or `POSITION=TOKEN` of a text.

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
    if isinstance(default, Item):
        return Item(text)
    places = re.fullmatch(r"(-?\d+)(?:=(\d+))?", text)
    if places is None or (places[2] and not isinstance(default, Token)):
        raise UserError(
            f"--target {text}: {type(task).__name__} has scalars by number, such as 0, or `loss`"
        )
    if isinstance(default, Token):
        return Token(int(places[1]), int(places[2]) if places[2] else None)
    return type(default)(int(places[1]))  # pyright: ignore[reportCallIssue]
