"""Samples of a run: what its model makes, as images, texts or sounds."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jdl.data.pipeline import apply_transforms
from jdl.data.tokenizers import Tokenizer, special_ids
from jdl.decoding import Sampling, stream
from jdl.decoding.sampling import PLAIN
from jdl.errors import UserError
from jdl.media import Media, Texts
from jdl.tasks import LanguageModeling, Task
from jdl.tasks.base import EDITED, LABEL, STRENGTH
from jdl.tasks.randomness import ROW_SEEDS, row_seeds
from jdl.tracing import takes_argument
from jdl.typing import Key

TOKENS = 200
"""Length of the texts that a language model samples."""


def sample(
    run: Any,
    count: int,
    key: Key | None,
    split: str | None,
    label: int | Sequence[int] | None,
    state: Any,
) -> Media:
    """Samples a run's model.

    Args:
      run, count, key, split, label: see `Run.sample`.
      state: on the devices, as it is evaluated.
    """
    if count < 1:
        raise UserError(f"the number of samples must be at least 1, not {count}")
    task, data, size = run.experiment.task, run.experiment.data, run.experiment.batch_size
    labels = None if label is None else _labels(task, label, count)
    if isinstance(task, LanguageModeling):
        return _texts(run, count, key, state)
    pipeline = None if task.unconditional else run.pipeline(split or _default_split(run))
    parts = []
    for step in range(-(-count // size)):
        rows = run.shard.positions(step, size)
        # The examples begin again after the last, with other keys.
        batch = (
            zeros(run, len(rows)) if pipeline is None else pipeline.examples(rows % len(pipeline))
        )
        batch["mask"] = rows < count
        if labels is not None:
            batch[LABEL] = labels[np.minimum(rows, count - 1)]
        placed = run.compiled.put({**batch, ROW_SEEDS: row_seeds(key, rows)})
        parts.append((jax.device_get(run.compiled.sample(state, placed)), batch))
    samples, batch = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    return task.render(samples, batch, data)


def _labels(task: Task, label: int | Sequence[int], count: int) -> np.ndarray:
    """Returns the class of each sample, (count,) int32.

    Raises:
      UserError: a task draws no samples of such classes, or their number is another.
    """
    classes = getattr(task, "num_classes", 0) if task.unconditional else 0
    if not classes:
        raise UserError(
            f"the task {type(task).__name__} draws no samples of a class: leave the label out, or "
            f"train with task.num_classes"
        )
    labels = np.asarray(label, np.int32)
    if labels.ndim and labels.shape != (count,):
        raise UserError(f"there are {labels.size} labels for {count} samples: give one for each")
    for value in labels.ravel().tolist():
        if not 0 <= value < classes:
            raise UserError(f"the label of samples is {value}, outside 0..{classes - 1}")
    return np.broadcast_to(labels, count)


def edit(
    run: Any,
    image: np.ndarray,
    mask: np.ndarray | None,
    strength: float | None,
    count: int,
    key: Key | None,
    state: Any,
) -> Media:
    """Returns an image with changes; see `Run.edit`.

    Args:
      run, image, mask, strength, count, key: see `Run.edit`.
      state: on the devices, as it is evaluated.
    """
    task, data, size = run.experiment.task, run.experiment.data, run.experiment.batch_size
    if count < 1:
        raise UserError(f"the number of samples must be at least 1, not {count}")
    if type(task).edit is Task.edit:
        raise UserError(
            f"the task {type(task).__name__} cannot edit images: train one such as "
            f"jdl.tasks.Diffusion"
        )
    strength = strength if strength is not None else (0.5 if mask is None else 1.0)
    if not 0 < strength <= 1:
        raise UserError(
            f"the strength of an edit is above 0 (no change) and at most 1 (a new image), not "
            f"{strength}"
        )
    example = _prompt(run, image, mask)
    parts = []
    for step in range(-(-count // size)):
        rows = run.shard.positions(step, size)
        batch = {name: np.broadcast_to(x, (len(rows), *x.shape)) for name, x in example.items()}
        batch |= {"mask": rows < count, STRENGTH: np.full(len(rows), strength, np.float32)}
        placed = run.compiled.put({**batch, ROW_SEEDS: row_seeds(key, rows)})
        parts.append((jax.device_get(run.compiled.sample(state, placed)), batch))
    samples, batch = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    return task.render(samples, batch, data)


def _prompt(run: Any, image: np.ndarray, mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns an image to edit, with its mask, as an example after the host transforms.

    Raises:
      UserError: it is of another size than the run's images, or the mask of another than it, or
        the mask covers all of it or nothing.
    """
    name = run.experiment.task.input_names[0]
    shape = run.batch[name].shape[1:]
    image = np.asarray(image)
    if image.shape != shape:
        raise UserError(
            f"the image to edit has shape {image.shape}, where those of the run have {shape}: "
            f"resize or convert it first"
        )
    example = {key: x[0] for key, x in zeros(run, 1).items() if key not in ("mask", EDITED)}
    example[name] = image
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != shape[:2]:
            raise UserError(
                f"the mask has shape {mask.shape} and dtype {mask.dtype}, where the image needs "
                f"one bool for each of its {shape[0]}x{shape[1]} pixels"
            )
        check_mask(mask, "the mask")
        example[EDITED] = mask[..., None].astype(np.uint8)
    example = {**example, **apply_transforms(run.experiment.data, example)}
    if example[name].shape != shape:
        raise UserError(
            f"the data's transforms bring an image of {shape[0]}x{shape[1]} pixels to the shape "
            f"{example[name].shape}, in which it cannot be returned"
        )
    return example


def check_mask(mask: np.ndarray, where: str) -> None:
    """Raises a UserError if a mask (height, width) bool covers all of an image, or nothing."""
    if mask.all():
        raise UserError(
            f"{where} covers every pixel, so that nothing of the image is kept: leave it out and "
            f"set the strength, or sample without an image"
        )
    if not mask.any():
        raise UserError(
            f"{where} covers no pixel, so nothing would change: paint the pixels to replace white"
        )


def zeros(run: Any, rows: int) -> dict[str, np.ndarray]:
    """Returns examples of zeros, shaped like those of the run."""
    return {name: np.zeros((rows, *x.shape[1:]), x.dtype) for name, x in run.batch.items()}


def first_tokens(tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that a text without a prompt continues: a line break, or the first."""
    try:
        return tokenizer.encode("\n")
    except UserError:
        return [0]


def end_token(tokenizer: Tokenizer) -> int | None:
    """Returns the token that ends a text, or None."""
    return special_ids(tokenizer).get("eos")


def until(tokens: list[int], end: int | None) -> list[int]:
    """Returns the tokens up to and including the first end token."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def stream_tokens(
    run: Any,
    state: Any,
    tokenizer: Tokenizer,
    prompt: list[int],
    tokens: int,
    sampling: Sampling,
    key: Key,
    samples: int,
) -> Iterator[np.ndarray]:
    """Continues a prompt with the language model of a run; see `jdl.decoding.stream`.

    Args:
      state: on the devices, as it is evaluated.
    """
    state, model = run.compiled.gather(state), run.program.model
    context = getattr(model, "max_position_embeddings", None)
    if context is None and not takes_argument(model, "decode"):
        # Without a field that limits it, the model is only known to work on its training length.
        context = run.batch[run.experiment.task.input_names[0]].shape[1] - 1
    return stream(
        model, state.params, prompt, tokens, sampling, key, samples=samples,
        eos_token_id=end_token(tokenizer), vocab_size=tokenizer.vocab_size, context_length=context,
        collections=state.collections,
    )  # fmt: skip


def _texts(run: Any, count: int, key: Key | None, state: Any) -> Texts:
    tokenizer = run.experiment.data.tokenizer()
    known, end = first_tokens(tokenizer), end_token(tokenizer)
    key = jax.random.key(0) if key is None else key
    chunks = stream_tokens(run, state, tokenizer, known, TOKENS, PLAIN, key, count)
    rows = np.concatenate(list(chunks), axis=1).tolist()
    begin = len(tokenizer.decode(known))
    return Texts([tokenizer.decode(known + until(row, end))[begin:] for row in rows])


def _default_split(run: Any) -> str:
    return "validation" if "validation" in run.splits else "train"
