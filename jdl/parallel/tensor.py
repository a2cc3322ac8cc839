"""Tensor parallelism: devices share each large kernel of a layer, by rules on parameters' paths."""

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
"""An axis of the mesh, or None, for each of the last dimensions of a leaf."""

Rule = tuple[str, Axes]
"""A regular expression for the end of a path, from where a name begins, and what it is split by."""

TRANSFORMER: tuple[Rule, ...] = (
    (r"(qkv|query|kv|inner|gate)\.kernel", (None, "tensor")),
    (r"(qkv|query|kv|inner|gate)\.bias", ("tensor",)),
    (r"(attention|cross)\.output\.kernel", ("tensor", None)),
    (r"feed_forward\.outer\.kernel", ("tensor", None)),
    (r"embedding|logits", ("tensor", None)),
)
"""For `jdl.layers.Block`: a device computes some heads and some hidden units, from a split of the
first product's columns and of the second's rows, and a sum over devices ends each part (Shoeybi et
al., 2019, section 3). Embeddings are split by the vocabulary."""


@dataclass(frozen=True)
class TensorParallel(Strategy):
    """Kernels split over `tensor` devices each; over groups of these, the rows of the batch.

    The first rule that matches a leaf's path says how its last dimensions are split: `rules`, then
    `TRANSFORMER`. The moments and averages that an optimizer keeps of a parameter are split as it
    is, since their paths end as its does. What no rule matches is whole, as is a leaf that a rule
    of `TRANSFORMER` does not divide evenly; one of `rules` must divide it. Heads are computed
    where they lie if `tensor` divides the model's `num_kv_heads`, or else its `num_heads`.
    """

    tensor: int = 2  # devices that share a kernel
    fsdp: int = 1  # groups of them over which all else of the state is spread (fully_sharded)
    min_elements: int = 1024  # smaller leaves are not spread over fsdp
    rules: tuple[Rule, ...] = ()  # (end of a path, axes of its last dimensions), tried in order

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tensor", "fsdp"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"strategy.{name} is a number of devices, not {getattr(self, name)}"
                )
        for pattern, axes in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"strategy.rules: {pattern!r} is no regular expression: {error}"
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
        """`tensor` and `fsdp` as asked for, the rest along `data`."""
        if count % (self.tensor * self.fsdp):
            raise UserError(
                f"{count} devices cannot be shared out in groups of {self.tensor * self.fsdp} "
                f"(strategy.tensor times strategy.fsdp)"
            )
        return count // (self.tensor * self.fsdp), self.fsdp, self.tensor

    def mesh(self) -> Mesh:
        """As in `Strategy.mesh`; devices that share a kernel are of one process."""
        mesh = super().mesh()
        for group in mesh.devices.reshape(-1, self.tensor):
            if len({device.process_index for device in group}) > 1:
                raise UserError(
                    f"strategy.tensor: {self.tensor} devices are more than one process has, and "
                    f"those that share a kernel need the same rows of the batch"
                )
        return mesh

    def shardings(self, state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
        """As in `Strategy.layout`.

        Raises:
          UserError: one of `rules` matches no parameter or does not divide one, or nothing is
            split at all.
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
        """As the first rule says that matches, then over `fsdp` what it leaves whole."""
        axes = self._ruled(path, leaf.shape, mesh)
        if mesh.shape["fsdp"] == 1:
            return P(*axes)
        return shard_largest_axis(axes, leaf.shape, mesh.shape["fsdp"], self.min_elements)

    def _ruled(self, path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> Axes:
        """What splits each dimension of a leaf; nothing where the rule does not fit."""
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
    """Every end of a path that begins with a name, each once."""
    parts = [path.split(".") for path in paths]
    return list(dict.fromkeys(".".join(p[i:]) for p in parts for i in range(len(p))))
