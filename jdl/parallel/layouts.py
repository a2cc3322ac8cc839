"""Strategies for one device, data parallelism and fully sharded data parallelism."""

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
        """See `Strategy.mesh_shape`."""
        if count != 1:
            raise UserError("the strategy single runs on one device of one process")
        return (1, 1, 1)


@dataclass(frozen=True)
class DataParallel(Strategy):
    """Batch sharded over all devices, state replicated on each."""


@dataclass(frozen=True)
class FullySharded(Strategy):
    """Batch, parameters and optimizer state sharded over all devices (ZeRO stage 3, FSDP).

    Each leaf is sharded along its largest axis that the number of devices divides; small leaves are
    replicated (Rajbhandari et al., 2020).
    """

    min_elements: int = 1024  # smaller leaves are replicated

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """See `Strategy.mesh_shape`; all devices are along `fsdp`."""
        return (1, count, 1)

    def partition_spec(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> P:
        """See `Strategy.partition_spec`; shards parameters, averages and moments alike."""
        del path
        return shard_largest_axis((), leaf.shape, mesh.shape["fsdp"], self.min_elements)


def shard_largest_axis(
    axes: tuple[str | None, ...], shape: tuple[int, ...], count: int, least: int
) -> P:
    """Shards the largest unsharded axis that `count` divides over `fsdp`.

    Args:
      axes: mesh axes of the leaf's first axes so far.
      shape: of the leaf.
      count: devices along `fsdp`.
      least: minimum number of elements; a smaller leaf is not sharded.
    """
    axes = (*axes, *[None] * (len(shape) - len(axes)))
    fits = [i for i, size in enumerate(shape) if axes[i] is None and size % count == 0]
    if fits and "fsdp" not in axes and math.prod(shape) >= least:
        chosen = max(fits, key=lambda i: shape[i])
        axes = (*axes[:chosen], "fsdp", *axes[chosen + 1 :])
    last = max((i for i, axis in enumerate(axes) if axis), default=-1)
    return P(*axes[: last + 1])
