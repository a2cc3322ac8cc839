"""Examples of a split: read, transformed on the host, checked, and stacked to batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.base import Data
from jdl.data.conversion import to_native
from jdl.data.sources import Example, Source, flatten, read_examples
from jdl.errors import UserError, first_line


def read_transformed(
    data: Data,
    source: Source,
    indices: np.ndarray,
    split: str,
    draws: Sequence[tuple[int, ...]] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Returns examples after the host transforms.

    Args:
      data: with the transforms.
      source: of the split.
      indices: of the examples.
      split: its name, for errors.
      draws: for each example the integers from which its random transforms draw; None: as in
        evaluation.

    Raises:
      UserError: as `apply_transforms`, with the example's index and its `file` if it has one.
    """
    found = []
    for place, (index, example) in enumerate(
        zip(indices.tolist(), read_examples(source, indices.tolist()), strict=True)
    ):
        try:
            found.append(apply_transforms(data, example, None if draws is None else draws[place]))
        except UserError as error:
            file = example.get("file")
            named = f" ({file})" if isinstance(file, (str, Path)) else ""
            raise UserError(f"example {index} of split {split!r}{named}: {error}") from error
    return found


def apply_transforms(
    data: Data, example: Mapping[str, Any], draw: tuple[int, ...] | None = None
) -> dict[str, np.ndarray]:
    """Applies the host transforms; keeps numeric arrays, casting 64-bit types to 32-bit.

    Args:
      data: with the transforms.
      example: with nested features or without; see `flatten`.
      draw: integers from which random transforms draw, such as seed, epoch and index; None: in
        evaluation and prediction, where they do not.

    Raises:
      UserError: a transform fails or returns no example; an integer does not fit into 32 bits.
    """
    for index, transform in enumerate(data.transforms):
        example = _transformed(index, transform, example, draw)
    arrays = {}
    for name, value in flatten(example).items():
        array = _numbers(value, name)
        if array is not None:
            arrays[name] = array
    if "mask" in arrays:
        raise UserError(
            "the data has an array 'mask', by which a batch marks rows of padding: give it "
            "another name"
        )
    return arrays


def _transformed(
    index: int, transform: Any, example: Example, draw: tuple[int, ...] | None
) -> Example:
    """Applies the transform at an index of `data.transforms`."""
    name = getattr(transform, "__name__", type(transform).__name__)
    where = f"data.transforms.{index} ({name})"
    known = ", ".join(map(repr, example))
    try:
        if draw is not None and hasattr(transform, "random_map"):
            # A spawn key, since NumPy pads the entropy with zeros: (1, 2) and (1, 2, 0) are one.
            seeds = np.random.SeedSequence(draw, spawn_key=(index,))
            changed = transform.random_map(example, np.random.default_rng(seeds))
        else:
            changed = transform(example)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where} fails on an example with {known}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(changed, Mapping):
        raise UserError(
            f"{where} returns {type(changed).__name__}, where it must return the example, a "
            f"dict of arrays by name"
        )
    return changed


def _numbers(value: Any, name: str) -> np.ndarray | None:
    """Returns a value as an array of at most 32 bits, None if it holds no numbers."""
    try:
        array = to_native(np.asarray(value))
    except ValueError as error:  # lists of several lengths
        raise UserError(
            f"{name!r} is no array ({first_line(error)}): bring its items to one shape in "
            f"data.transforms"
        ) from error
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype in (np.int64, np.uint64):
        array = _narrow(array, name)
    if array.dtype.kind == "c":
        raise UserError(
            f"{name!r} is complex: convert it to real numbers, such as its two parts, "
            f"in data.transforms"
        )
    return array if array.dtype.kind in "biuf" else None


def _narrow(array: np.ndarray, name: str) -> np.ndarray:
    for extreme in (array.max(), array.min()) if array.size else ():
        if not -(2**31) <= extreme < 2**31:
            raise UserError(
                f"{name!r} holds {extreme}, which does not fit into 32 bits: number from 0"
            )
    return array.astype(np.int32)


def stack_examples(
    examples: list[dict[str, np.ndarray]], indices: np.ndarray, split: str = "train"
) -> dict[str, np.ndarray]:
    """Stacks examples along a new axis 0.

    Raises:
      UserError: two examples differ in shape.
    """
    for name in examples[0]:
        for i, example in zip(indices, examples, strict=True):
            if example[name].shape != examples[0][name].shape:
                raise UserError(
                    f"{name!r} has shape {examples[0][name].shape} in example {indices[0]} of "
                    f"split {split!r} and {example[name].shape} in example {i}: bring all to one "
                    f"shape in data.transforms, images with Resize and lists with Pad"
                )
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
