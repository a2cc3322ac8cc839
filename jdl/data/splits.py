"""The splits of a data set, opened lazily and shared by runs on the same data."""

from collections.abc import Collection

from jdl.data.base import Data, get_split
from jdl.data.pipeline import Pipeline, open_pipeline
from jdl.data.sources import epoch_size
from jdl.errors import UserError
from jdl.typing import Json


class Splits:
    """Pipelines of the splits of a data set.

    Args:
      data: the data set.
      exclude: names of splits to hide.

    Raises:
      UserError: the set is missing, or a split is empty.
    """

    def __init__(self, data: Data, exclude: Collection[str] = ()) -> None:
        self._data, self._exclude = data, exclude
        found = data.splits()
        if data.calibration_fraction and "calibration" not in found:
            raise UserError(
                f"data.calibration_fraction={data.calibration_fraction} has no effect on "
                f"{type(data).__name__}, which holds out no calibration split: set it to 0, or "
                f"that of the data set that it wraps"
            )
        self._sources = {name: source for name, source in found.items() if name not in exclude}
        self._pipelines: dict[str, Pipeline] = {}

    def with_data(self, data: Data) -> "Splits":
        """Returns the splits of a data set, opened again if it is another, less those excluded."""
        return self if data is self._data else Splits(data, self._exclude)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._sources)

    def count(self, name: str) -> int:
        """Returns the number of examples in a split."""
        return len(get_split(self._sources, name))

    @property
    def epoch_size(self) -> int:
        """Number of examples in an epoch of training."""
        return epoch_size(get_split(self._sources, "train"))

    def pipeline(self, name: str) -> Pipeline:
        """Returns the pipeline of a split, opened on first use.

        Raises:
          UserError: there is no such split, or its examples cannot be batched.
        """
        source = get_split(self._sources, name)
        if name not in self._pipelines:
            self._pipelines[name] = open_pipeline(self._data, source, name)
        return self._pipelines[name]

    def fingerprints(self, names: Collection[str] | None = None) -> dict[str, Json]:
        """Returns source, version, count and SHA-256 by split name; None: of all splits."""
        return {
            name: {**self._data.fingerprint(source), "count": len(source)}
            for name, source in self._sources.items()
            if names is None or name in names
        }
