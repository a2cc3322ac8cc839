"""Subsets of a data set: some classes, few training examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jdl.data.base import Data
from jdl.data.readers import Reader
from jdl.data.sources import Example, Source, Subset, read_examples
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Selection(Data):
    """The examples of some classes of a data set, relabeled from 0.

    Splits and transforms are those of `data`. Of the training split, as few examples as asked for
    are kept, each class alike, drawn by `split_seed`. With `test_classes` the test split has other
    classes than training, as for embeddings of people or things that were never seen.
    """

    data: Data = field(kw_only=False)  # the set; its examples have `label`
    classes: tuple[int, ...]  # labels to keep, in the order of their new ids
    num_examples: int | None = None  # of the training split; None: all
    test_classes: tuple[int, ...] = ()
    """Labels to keep in the test split, in the order of their new ids, which follow those of
    `classes` unless they are among these; (): `classes`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("classes", "test_classes"):
            labels = getattr(self, name)
            if repeated := [label for label in labels if labels.count(label) > 1]:
                raise UserError(f"data.{name} holds {repeated[0]} twice: take one out")

    def splits(self) -> dict[str, Source]:
        """Returns the reduced splits.

        Raises:
          UserError: a class has too few training examples.
        """
        kept = {
            name: self._of_classes(source, self.test_classes if name == "test" else ())
            for name, source in self.data.splits().items()
        }
        if self.test_classes and not len(kept.get("test", ())):
            labels = ", ".join(map(str, self.test_classes))
            raise UserError(
                f"the test split of {self.full_name()} has no example of the classes {labels}: "
                f"correct data.test_classes"
            )
        if self.num_examples is not None:
            kept["train"] = self._few(kept["train"], self.num_examples)
        return dict(kept)

    def convert(self, source: Source) -> "Relabeled":
        """See `Data.convert`."""
        return self._of_classes(source)

    def reader(self) -> Reader:
        """Delegates to `data`."""
        return self.fitted_wrapped.reader()

    def output_names(self) -> tuple[str, ...]:
        """Names of the chosen classes."""
        if self.fitted_values is not None:
            return tuple(self.fitted_values["classes"])
        names = self.data.output_names()
        return tuple(names[label] for label in self._all_classes) if names else ()

    @property
    def _all_classes(self) -> tuple[int, ...]:
        """The labels of all splits, in the order of their new ids."""
        return tuple(dict.fromkeys((*self.classes, *self.test_classes)))

    def _of_classes(self, source: Source, classes: tuple[int, ...] = ()) -> "Relabeled":
        labels = np.array([int(x["label"]) for x in read_examples(source, range(len(source)))])
        number = {label: index for index, label in enumerate(self._all_classes)}
        kept = np.flatnonzero(np.isin(labels, classes or self.classes))
        return Relabeled(Subset(source, kept), np.array([number[labels[i]] for i in kept]))

    def _few(self, source: "Relabeled", count: int) -> "Relabeled":
        """Selects equally many examples of each class."""
        each, rest = divmod(count, len(self.classes))
        rng, kept = np.random.default_rng(self.split_seed), []
        for label in range(len(self.classes)):
            found = np.flatnonzero(source.labels == label)
            if rest or len(found) < each or not each:
                raise UserError(
                    f"data.num_examples: {count} are not the same number for each of "
                    f"{len(self.classes)} classes, of which the smallest has {len(found)}"
                )
            kept.append(rng.choice(found, each, replace=False))
        indices = np.sort(np.concatenate(kept))
        return Relabeled(Subset(source.source, indices), source.labels[indices])


@dataclass(frozen=True)
class Relabeled:
    """A source with replaced labels."""

    source: Source
    labels: np.ndarray  # (n,) int

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`."""
        return {**self.source[index], "label": np.int32(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once."""
        examples = zip(read_examples(self.source, indices), indices, strict=True)
        return [{**example, "label": np.int32(self.labels[i])} for example, i in examples]
