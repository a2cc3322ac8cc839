"""Explains predictions of a run."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data import Speech
from jdl.data.examples import apply_transforms, stack_examples
from jdl.data.tokenizers import BOS
from jdl.errors import UserError
from jdl.explain.cards import Card, check
from jdl.explain.features import by_site, grid_features, sites, table_columns
from jdl.explain.gradients import IntegratedGradients
from jdl.explain.method import Method, Request
from jdl.explain.subject import Inputs, Subject
from jdl.explain.target_names import CLASSIFIERS, default_target, parse_target
from jdl.explain.targets import PREFIX, Pixels, Target
from jdl.step import transform
from jdl.tasks import (
    AdversarialClassification,
    BinaryClassification,
    Detection,
    Game,
    LanguageModeling,
    MaskedLanguageModeling,
    Segmentation,
    Translation,
)
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.trainer.checks import has_shape_of_training
from jdl.trainer.run import Run
from jdl.typing import Key

REFERENCE = 64
"""Training examples from which baselines are made."""


@dataclass(frozen=True)
class Explanations:
    """Attributions of some rows by one method, with their card.

    Attributes:
      method: by which they were made.
      request: what they explain.
      names: of the scalar of each row, such as the class.
      scores: the scalar, (rows,).
      attributions: by input, (rows, ...) arrays that broadcast to it.
      card: what was checked; None: nothing was.
      prediction: of the task for the rows.
      examples: the rows before the device transforms.
    """

    method: Method
    request: Request
    names: Sequence[str]
    scores: np.ndarray
    attributions: Inputs
    card: Card | None
    prediction: Any
    examples: Mapping[str, np.ndarray]

    def maps(self) -> dict[str, np.ndarray]:
        """Returns attributions by input: of an image (rows, height, width), of a text (rows, time).

        Those of other inputs have the input's shape. Channels and embeddings are summed.
        """
        found = {}
        for name, x in self.request.x.items():
            embedded = self.request.subject.embedded
            flat = by_site({name: x}, {name: self.attributions[name]}, embedded)
            shape = sites(x, name in embedded).shape
            joint = len(shape) < x.ndim - 1 or (shape and shape[-1] == 1 and x.ndim > 2)
            found[name] = flat.reshape(len(flat), *(shape[:-1] if joint else shape))
        return found


def explain(
    run: Run,
    examples: Mapping[str, np.ndarray],
    method: Method | None = None,
    target: Target | str | None = None,
    *,
    checks: bool = True,
    key: Key | None = None,
) -> Explanations:
    """Explains the predictions of a run for some examples.

    Args:
      run: whose model predicts.
      examples: arrays (rows, ...) after the host transforms, as of `run.pipeline(split).examples`
        or `read_files`.
      method: of attribution; None: integrated gradients.
      target: the scalar to explain, or its name (`parse_target`); None: that of the prediction.
      checks: make the card, which takes several times the time of the attributions.
      key: of what the method draws; None: key 0.

    Raises:
      UserError: the method does not apply to the model, or there is no such target.
    """
    method = IntegratedGradients() if method is None else method
    request, names, prediction = make_request(run, examples, target, key)
    attributions = jax.tree.map(np.asarray, method.attribute(request))
    card = None
    if checks:
        classes = _classes(run, prediction)
        card = check(request, method, attributions, classes, _regions(run, request))
    return Explanations(
        method, request, names, request.scores(), attributions, card, prediction, examples
    )


def make_request(
    run: Run,
    examples: Mapping[str, np.ndarray],
    target: Target | str | None = None,
    key: Key | None = None,
) -> tuple[Request, list[str], Any]:
    """Returns what is to be explained, the name of each row's scalar, and the prediction.

    Raises:
      UserError: the task has several players, or there is no such target.
    """
    task, data = run.experiment.task, run.experiment.data
    if isinstance(task, Game) and not isinstance(task, AdversarialClassification):
        raise UserError(
            f"{type(task).__name__} has several players and predicts no scalar of its inputs: "
            f"explain a classifier of its images instead"
        )
    examples = _as_in_training(run, examples)
    prediction = run.predict_rows(examples)
    batch = _batch(run, examples)
    if isinstance(task, Translation):
        first = np.full((len(prediction), 1), BOS, np.int32)
        batch[PREFIX] = np.concatenate([first, prediction[:, :-1]], 1)
    if isinstance(target, str):
        target = parse_target(task, target)
    target = default_target(task) if target is None else target
    arrays, names = target.resolve(task, prediction, batch, data.output_names())
    subject = Subject(task, run.program.model, _state(run), target, batch)
    x = subject.inputs(batch)
    columns, _ = table_columns(data)
    read = task.input_names if task.any_length else ()
    lengths = {name: examples[name].shape[1] for name in read}
    request = Request(
        subject=subject,
        params=subject.params,
        x=x,
        rows={"batch": batch, "target": arrays},
        features=grid_features(x, subject.embedded, columns),
        reference=functools.cache(functools.partial(_reference, run, subject, lengths)),
        key=jax.random.key(0) if key is None else key,
    )
    return request, _worded(run, names, request), prediction


def read_files(run: Run, paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Returns the examples of files as those of training are, (rows, ...) arrays.

    Raises:
      UserError: a file cannot be read, or its examples differ in shape.
    """
    if isinstance(run.experiment.task, LanguageModeling):
        return _windows(run, paths)
    read, rows = run.experiment.data.reader(), []
    for path in paths:
        arrays = read(path)
        rows += [
            apply_transforms(run.prediction_data, dict(zip(arrays, row, strict=True)))
            for row in zip(*arrays.values(), strict=True)
        ]
    return stack_examples(rows, np.arange(len(rows)), "the files")


def _windows(run: Run, paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Returns the last tokens of texts, each to explain the token that follows them."""
    from jdl.data.files import read_text

    name = run.experiment.task.input_names[0]
    length = run.batch[name].shape[1] - 1
    tokens = np.full((len(paths), length + 1), -1, np.int32)
    for row, path in enumerate(paths):
        found = run.experiment.data.tokenizer().encode(read_text(path))[-length:]
        if not found:
            raise UserError(f"{path} has no text to explain the next token of")
        tokens[row, : len(found)] = found
    rest = {n: np.zeros((len(paths), *v.shape[1:]), v.dtype) for n, v in run.batch.items()}
    return {**{n: v for n, v in rest.items() if n not in (name, "mask")}, name: tokens}


def _as_in_training(run: Run, examples: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Leaves out arrays that training has otherwise and no model reads, such as negatives."""
    read = run.experiment.task.input_names
    return {
        name: each
        for name, each in examples.items()
        if name in read or has_shape_of_training(run, name, each.shape[1:])
    }


def _batch(run: Run, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns examples as a task receives them."""
    count = len(next(iter(examples.values())))
    seeds = row_seeds(None, np.arange(count))
    batch = {**examples, "mask": np.ones(count, bool)}

    def transformed(batch: Any) -> Any:
        return transform(run.program, batch, None)

    return {**jax.tree.map(np.asarray, jax.jit(transformed)(batch)), ROW_SEEDS: seeds}


def _state(run: Run) -> Any:
    """Returns the state with the parameters that are evaluated."""
    state = run.evaluation_state(run.gather_state())
    # A model may index a table of parameters by traced numbers, which NumPy's arrays do not take.
    return state.replace(params=jax.tree.map(jnp.asarray, state.params))


def _reference(run: Run, subject: Subject, lengths: Mapping[str, int]) -> Inputs:
    """Returns the inputs of training examples that are spread over the split.

    Their token sequences are padded with 0 to `lengths`, those of the explained.
    """
    pipeline = run.pipeline("train")
    count = min(REFERENCE, len(pipeline))
    places = np.linspace(0, len(pipeline) - 1, count).round().astype(int)
    examples = dict(pipeline.examples(places))
    for name, length in lengths.items():
        missing = length - examples[name].shape[1]
        examples[name] = np.pad(examples[name], ((0, 0), (0, missing)))
    return subject.inputs(_batch(run, examples))


def _classes(run: Run, prediction: Any) -> int | None:
    """Returns the number of classes among which a target's is one; None: there are none."""
    task = run.experiment.task
    if isinstance(task, BinaryClassification):
        return 2
    if isinstance(task, Detection):
        return task.num_classes
    kinds = (*CLASSIFIERS, Segmentation, LanguageModeling, MaskedLanguageModeling)
    return prediction.shape[-1] if isinstance(task, kinds) else None


def _regions(run: Run, request: Request) -> np.ndarray | None:
    """Returns the sites of what is explained, by true boxes or masks; None: there are none."""
    (_, x), *others = request.x.items()
    if others or x.ndim != 4:
        return None
    batch, target = request.rows["batch"], request.rows["target"]
    height, width = x.shape[1:3]
    found = None
    if "segmentation_mask" in batch and isinstance(request.subject.target, Pixels):
        masks = np.asarray(batch["segmentation_mask"]).reshape(len(x), height, width)
        found = masks == np.asarray(target["label"])[:, None, None]
    elif "boxes" in batch and "label" in target and "boxes_mask" in batch:
        labels = np.asarray(batch.get("labels", batch.get("label")))
        kept = np.asarray(batch["boxes_mask"]).astype(bool)
        kept = kept & (labels == np.asarray(target["label"])[:, None])
        found = in_boxes(np.asarray(batch["boxes"]), kept, (height, width))
    return None if found is None or not found.any() else found.reshape(len(x), -1)


def in_boxes(boxes: np.ndarray, kept: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns which pixels are in any of the boxes that are kept, (rows, height, width) bool.

    Args:
      boxes: (rows, n, 4), x0, y0, x1, y1 in pixels.
      kept: (rows, n) bool.
      size: height and width of the images.
    """
    y, x = (np.arange(length) + 0.5 for length in size)
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    across, down = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)  # (rows, n, pixels)
    return np.einsum("rnh,rnw,rn->rhw", down, across, kept) > 0


def _worded(run: Run, names: list[str], request: Request) -> list[str]:
    """Returns names of tokens as their text."""
    if "token" not in request.rows["target"] or not run.experiment.data.has_tokenizer:
        return names
    data = run.experiment.data
    tokens = np.asarray(request.rows["target"]["token"])[:, None]
    places = np.asarray(request.rows["target"]["position"])
    texts = (
        [data.decode(t) for t in tokens]
        if isinstance(data, Speech)
        else [data.tokenizer().decode(t) for t in tokens.tolist()]
    )
    return [f"{text!r} at {p}" for text, p in zip(texts, places, strict=True)]
