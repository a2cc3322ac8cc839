"""One device, data parallelism, and a state spread over all devices."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from jdl.errors import UserError
from jdl.parallel.base import Strategy


@dataclass(frozen=True)
class Single(Strategy):
    """One device, the first."""

    def used(self) -> list[Any]:
        """The first device of this process."""
        if self.devices not in (None, 1) or jax.process_count() > 1:
            raise UserError("the strategy single runs on one device of one process")
        return jax.local_devices()[:1]

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """Of one device."""
        if count != 1:
            raise UserError("the strategy single runs on one device of one process")
        return (1, 1, 1)


@dataclass(frozen=True)
class DataParallel(Strategy):
    """Rows of the batch spread over all devices, the state whole on each."""


@dataclass(frozen=True)
class FullySharded(Strategy):
    """Batch, parameters and optimizer state spread over all devices (ZeRO stage 3).

    Of each leaf the largest dimension that the number of devices divides is split; small leaves
    stay whole (Rajbhandari et al., 2020).
    """

    min_elements: int = 1024  # smaller leaves stay whole on every device

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """All devices along `fsdp`."""
        return (1, count, 1)

    def partition_spec(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> P:
        """Splits the largest divisible dimension of params, averages and moments."""
        del path
        return shard_largest_axis((), leaf.shape, mesh.shape["fsdp"], self.min_elements)


def shard_largest_axis(
    axes: tuple[str | None, ...], shape: tuple[int, ...], count: int, least: int
) -> P:
    """Splits the largest dimension that is whole so far, and that `count` divides, over `fsdp`.

    Args:
      axes: what splits the first dimensions so far.
      shape: of the leaf.
      count: devices along `fsdp`.
      least: elements; a leaf with fewer stays as it is.
    """
    axes = (*axes, *[None] * (len(shape) - len(axes)))
    fits = [i for i, size in enumerate(shape) if axes[i] is None and size % count == 0]
    if fits and "fsdp" not in axes and math.prod(shape) >= least:
        chosen = max(fits, key=lambda i: shape[i])
        axes = (*axes[:chosen], "fsdp", *axes[chosen + 1 :])
    last = max((i for i, axis in enumerate(axes) if axis), default=-1)
    return P(*axes[: last + 1])
