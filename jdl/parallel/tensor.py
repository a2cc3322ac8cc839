"""Tensor parallelism: kernels are sharded over devices, by rules on parameters' paths."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from jdl.errors import UserError, nearest
from jdl.parallel.base import AXES, Strategy
from jdl.parallel.layouts import shard_largest_axis
from jdl.paths import path_name
from jdl.typing import PyTree

Axes = tuple[str | None, ...]
"""A mesh axis, or None, for each of the last axes of a leaf."""

Rule = tuple[str, Axes]
"""A regular expression for the last names of a path, and the mesh axes of the leaf."""

TRANSFORMER: tuple[Rule, ...] = (
    (r"(qkv|query|kv|inner|gate)\.kernel", (None, "tensor")),
    (r"(qkv|query|kv|inner|gate)\.bias", ("tensor",)),
    (r"(attention|cross)\.output\.kernel", ("tensor", None)),
    (r"feed_forward\.outer\.kernel", ("tensor", None)),
    (r"embedding|logits", ("tensor", None)),
)
"""For `jdl.layers.Block`: each device computes some heads and hidden units, from a shard of the
first kernel's columns and of the second's rows; a sum over devices ends each part (Shoeybi et al.,
2019, section 3). Embeddings are sharded by the vocabulary."""


@dataclass(frozen=True)
class TensorParallel(Strategy):
    """Kernels sharded over `tensor` devices each, the batch over groups of these.

    The first of `rules`, then `TRANSFORMER`, that matches a leaf's path determines the sharding of
    its last axes. Moments and averages of a parameter have paths with the same end and so are
    sharded alike. Leaves that no rule matches, or that a rule of `TRANSFORMER` does not divide
    evenly, are replicated; `rules` must divide evenly. Heads are computed without communication if
    `tensor` divides the model's `num_kv_heads`, or else its `num_heads`.
    """

    tensor: int = 2  # devices that a kernel is sharded over
    fsdp: int = 1  # groups of them that the rest of the state is sharded over
    min_elements: int = 1024  # smaller leaves are not sharded over fsdp
    rules: tuple[Rule, ...] = ()  # (end of a path, mesh axes), the first match wins

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tensor", "fsdp"):
            if getattr(self, name) < 1:
                raise UserError(f"strategy.{name} must be at least 1, not {getattr(self, name)}")
        for pattern, axes in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"strategy.rules: {pattern!r} is not a regular expression: {error}"
                ) from error
            named = [axis for axis in axes if axis is not None]
            if len(set(named)) < len(named):
                raise UserError(f"strategy.rules: {axes} splits two dimensions by one axis")
            for axis in named:
                if axis not in AXES:
                    raise UserError(
                        f"strategy.rules: there is no axis {axis!r} (there are "
                        f"{', '.join(AXES)}){nearest(axis, AXES)}"
                    )

    def mesh_shape(self, count: int) -> tuple[int, int, int]:
        """See `Strategy.mesh_shape`; devices beyond `tensor` times `fsdp` are along `data`."""
        if count % (self.tensor * self.fsdp):
            raise UserError(
                f"{count} devices cannot be divided into groups of {self.tensor * self.fsdp} "
                f"(strategy.tensor times strategy.fsdp)"
            )
        return count // (self.tensor * self.fsdp), self.fsdp, self.tensor

    def mesh(self) -> Mesh:
        """See `Strategy.mesh`; a kernel is sharded over devices of one process."""
        mesh = super().mesh()
        for group in mesh.devices.reshape(-1, self.tensor):
            if len({device.process_index for device in group}) > 1:
                raise UserError(
                    f"strategy.tensor: {self.tensor} devices are more than one process has, and "
                    f"those that share a kernel need the same rows of the batch"
                )
        return mesh

    def shardings(self, state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
        """See `Strategy.shardings`.

        Raises:
          UserError: one of `rules` matches no parameter or does not divide one evenly, or nothing
            is sharded at all.
        """
        leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
        paths = [path_name(path) for path, _ in leaves]
        for pattern, _ in self.rules:
            if not any(_matches(pattern, path) for path in paths):
                raise UserError(
                    f"strategy.rules: {pattern!r} matches no parameter"
                    f"{nearest(pattern, _endings(paths))}"
                )
        shardings = super().shardings(state, mesh)
        if mesh.shape["tensor"] > 1 and not any(
            "tensor" in where.spec for where in jax.tree.leaves(shardings.params)
        ):
            raise UserError(
                f"no rule splits a parameter of this model over {mesh.shape['tensor']} devices: "
                f"give strategy.rules, or use another strategy"
            )
        return shardings

    def partition_spec(self, path: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> P:
        """See `Strategy.partition_spec`; an axis that no rule shards may be sharded over `fsdp`."""
        axes = self._ruled(path, leaf.shape, mesh)
        if mesh.shape["fsdp"] == 1:
            return P(*axes)
        return shard_largest_axis(axes, leaf.shape, mesh.shape["fsdp"], self.min_elements)

    def _ruled(self, path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> Axes:
        """Returns the mesh axes of a leaf by the first rule that matches, if it fits."""
        rules = (*self.rules, *TRANSFORMER)
        found = next((i for i, (pattern, _) in enumerate(rules) if _matches(pattern, path)), None)
        if found is None:
            return ()
        last = rules[found][1]
        axes = (*[None] * (len(shape) - len(last)), *last)
        counts = [mesh.shape[axis] if axis else 1 for axis in axes]
        fits = len(axes) == len(shape) and not any(
            size % count for size, count in zip(shape, counts, strict=True)
        )
        if not fits and found < len(self.rules) and path.startswith("params."):
            raise UserError(
                f"strategy.rules: {path.removeprefix('params.')} of shape {shape} cannot be split "
                f"by {last} among {dict(mesh.shape)} devices"
            )
        return axes if fits else ()


def _matches(pattern: str, path: str) -> bool:
    return re.search(rf"(?:^|\.)(?:{pattern})$", path) is not None


def _endings(paths: Iterable[str]) -> list[str]:
    """Returns all suffixes of paths, in whole names, without duplicates."""
    parts = [path.split(".") for path in paths]
    return list(dict.fromkeys(".".join(p[i:]) for p in parts for i in range(len(p))))
