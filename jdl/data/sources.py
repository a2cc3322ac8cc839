"""Random access to the examples of a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jdl.errors import UserError

Example = Mapping[str, Any]
"""One example: arrays, numbers or strings by name, or dicts and lists of dicts of these."""


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of a split, like `tfds.data_source`."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """The example at `index`."""
        ...


@dataclass(frozen=True)
class Subset:
    """A subset of the examples of a source."""

    source: Source
    indices: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` of the subset."""
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once; many sources read these faster."""
        return read_examples(self.source, [int(self.indices[i]) for i in indices])


def flatten(example: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested features as arrays by path.

    `{"objects": {"bbox": x}}` becomes `{"objects/bbox": x}`, as TFDS names it, and a list of dicts
    becomes one array per key with the items along axis 0.

    Raises:
      UserError: the dicts of a list differ in their keys, or two features get the same name.
    """
    found: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            value = _transpose(name, [flatten(each) for each in value])
        inner = flatten(value) if isinstance(value, Mapping) else {"": value}
        for key, array in inner.items():
            path = f"{name}/{key}" if key else name
            if path in found:
                raise UserError(f"an example has two features {path!r}: rename one of them")
            found[path] = array
    return found


def _transpose(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turns a list of dicts into a dict of lists."""
    for place, item in enumerate(items):
        if item.keys() != items[0].keys():
            raise UserError(
                f"item {place} of the list {name!r} has {', '.join(item)}, where item 0 has "
                f"{', '.join(items[0])}: give all of them the same keys"
            )
    return {key: [item[key] for item in items] for key in items[0]}


def read_examples(source: Source, indices: Sequence[int]) -> list[Example]:
    """Returns the examples at `indices`, in one call if the source has `__getitems__`."""
    many = getattr(source, "__getitems__", None)
    return list(many(indices)) if many else [source[i] for i in indices]


def epoch_size(source: Source) -> int:
    """Returns the number of examples in an epoch of a training split."""
    mixing = getattr(source, "mixing", None)
    return len(source) if mixing is None else mixing.epoch_size


def root_indices(source: Source) -> np.ndarray:
    """Returns where the examples of nested subsets are in the innermost source, (n,) int64."""
    indices = np.arange(len(source))
    while isinstance(source, Subset):
        indices, source = source.indices[indices], source.source
    return indices


def innermost(source: Source) -> Source:
    """Returns the source of which nested subsets are parts."""
    while isinstance(source, Subset):
        source = source.source
    return source


def read_array(source: Source, name: str) -> np.ndarray | None:
    """Returns one array of all examples, or None if they lack it.

    The rest of the examples is not read if the source has a method `array`.
    """
    rows, root = root_indices(source), innermost(source)
    own = getattr(root, "array", None)
    if own is not None:
        found = own(name)
        return None if found is None else found[rows]
    if not len(rows) or name not in root[int(rows[0])]:
        return None
    return np.array([example[name] for example in read_examples(root, rows.tolist())])
