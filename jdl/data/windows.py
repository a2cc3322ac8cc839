"""Windows of series on a regular grid, scaled each by itself."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jdl.data.features import LIMIT
from jdl.data.fingerprints import add_array
from jdl.data.sources import Example

LEAST_SPREAD = 0.01
"""Part of a target's deviation in training by which a window is divided at least."""


@dataclass(frozen=True)
class Windows:
    """A `Source` of windows, which are cut when they are read.

    Attributes:
      arrays: of all series one after another, (steps, ...): `filled` and `raw` targets, `past` and
        `future` covariates; and (series, ...): `static`, `divisor`, `mean`, `naive`.
      starts: first step of each window.
      series: of each window.
      length, horizon: of the windows.
    """

    arrays: Mapping[str, np.ndarray]
    starts: np.ndarray
    series: np.ndarray
    length: int
    horizon: int

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> Example:
        """The window at `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several windows at once."""
        found = self.read(np.asarray(indices))
        return [{name: x[row] for name, x in found.items()} for row in range(len(indices))]

    def digest(self) -> str:
        """SHA-256 of the arrays and the windows."""
        digest = hashlib.sha256(f"{self.length} {self.horizon}".encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode())
            add_array(digest, array)
        add_array(digest, self.starts)
        add_array(digest, self.series)
        return digest.hexdigest()

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns windows as arrays, (windows, ...)."""
        inputs, series = self.inputs(indices), self.series[indices]
        steps = self.starts[indices, None] + np.arange(self.length, self.length + self.horizon)
        value = self.arrays["raw"][steps]
        observed = ~np.isnan(value)
        value = np.where(observed, value, 0.0)
        offset, spread = inputs["offset"][:, None], inputs["scale"][:, None]
        return {
            **inputs,
            "y": np.where(observed, (value - offset) / spread, 0.0).astype(np.float32),
            "value": value.astype(np.float32),
            "observed": observed,
            "naive_error": self.arrays["naive"][series].astype(np.float32),
        }

    def inputs(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the inputs of windows, with `offset` and `scale` of their targets."""
        arrays, series = self.arrays, self.series[indices]
        before = self.starts[indices, None] + np.arange(self.length)
        after = before[:, -1:] + 1 + np.arange(self.horizon)
        known = arrays["filled"][before]
        mean, divisor = arrays["mean"], arrays["divisor"]
        offset = known[:, -1]
        spread = np.maximum(known.std(1), LEAST_SPREAD * divisor)
        level = np.clip((offset - mean) / divisor, -LIMIT, LIMIT)
        static = [arrays["static"][series], level, np.log(spread / divisor)]
        past = np.clip((known - offset[:, None]) / spread[:, None], -LIMIT, LIMIT)
        seen = ~np.isnan(arrays["raw"][before])
        parts = [past, seen, arrays["past"][before], arrays["future"][before]]
        return {
            "past": np.concatenate(parts, 2, dtype=np.float32),
            "future": arrays["future"][after].astype(np.float32),
            "static": np.concatenate(static, 1, dtype=np.float32),
            "offset": offset.astype(np.float32),
            "scale": spread.astype(np.float32),
        }
