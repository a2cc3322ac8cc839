"""Attributions by a layer: Grad-CAM at the last spatial layer, attention rollout."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.explain.method import Method, Request
from jdl.explain.subject import Inputs
from jdl.layers.attention import WEIGHTS
from jdl.tasks import Translation

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class GradCAM(Method):
    """A layer's channels, weighted by their mean gradient (Selvaraju et al., 2017).

    The map has the size of the input, bilinearly. Of a transformer on patches, or on tokens, the
    positions are the layer's pixels. Negative values, which the paper drops, speak against the
    target.
    """

    layer: str | None = None
    """Path of a module, such as `Conv_1`; None: the last with several pixels, or a position for
    each patch or token, on which the scalar depends."""

    is_finest: ClassVar[bool] = False

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        path = self.find(request)
        return request.by_parts(functools.partial(self._upsampled, path=path))

    def find(self, request: Request) -> str:
        """Returns the path of the layer.

        Raises:
          UserError: the model has no such layer.
        """
        first = request.take(np.arange(1))
        if self.layer is not None:
            path, leaf = first.subject.layer(self.layer, first.x, first.rows)
            if _grid(first, leaf.shape) is None:
                raise UserError(
                    f"the layer {path!r} has outputs of shape {leaf.shape[1:]}, which are neither "
                    f"pixels (height, width, channels) nor positions of the input"
                )
            return path
        found = first.subject.layers(first.x, first.rows)
        usable = [path for path, leaf in found if _grid(first, leaf.shape) is not None]
        usable = _readable(first, usable)
        _, _, gradients = first.subject.layer_gradient(
            first.params, first.x, first.rows, tuple(usable)
        )
        for path in reversed(usable):
            gradient = np.asarray(gradients[path])
            first_position = gradient.shape[1] - int(np.prod(_grid(first, gradient.shape) or 1))
            if gradient.ndim == 4 or gradient[:, max(first_position, 0) :].any():
                return path
        known = ", ".join(f"{path} {leaf.shape[1:]}" for path, leaf in found)
        raise UserError(
            f"Grad-CAM needs a layer with several pixels or positions, which "
            f"{type(request.subject.model).__name__} lacks (it has {known}): use --method "
            f"integrated_gradients"
        )

    def maps(self, request: Request, path: str) -> Array:
        """Returns the maps of a layer, (rows, height, width) of its pixels or positions."""
        _, outputs, gradients = request.subject.layer_gradient(
            request.params, request.x, request.rows, (path,)
        )
        output, gradient = (jnp.asarray(x[path], jnp.float32) for x in (outputs, gradients))
        inner = tuple(range(1, output.ndim - 1))
        found = (output * gradient.mean(inner, keepdims=True)).sum(-1)
        grid = _grid(request, output.shape)
        assert grid is not None
        if output.ndim == 3:  # a class token comes first
            found = found[:, found.shape[1] - grid[0] * grid[1] :]
        return found.reshape(len(found), *grid)

    def _upsampled(self, request: Request, path: str) -> Inputs:
        name, x = next(iter(request.x.items()))
        found = self.maps(request, path)
        if x.ndim == 4:
            found = jax.image.resize(found, (len(found), *x.shape[1:3]), "bilinear")[..., None]
        else:
            found = found[:, 0, :, None]
        zeros = {n: np.zeros((len(found), *(1,) * (v.ndim - 1))) for n, v in request.x.items()}
        return {**zeros, name: found}


def _readable(request: Request, paths: list[str]) -> list[str]:
    """Returns the modules whose outputs can be read: not those inside of a scan."""

    def outputs(x: Inputs, rows: Any) -> Any:
        return subject.outputs(request.params, subject.batch(x, rows), paths)[1].get(
            "intermediates", {}
        )

    subject = request.subject
    shapes = jax.eval_shape(outputs, request.x, request.rows)

    def is_there(path: str) -> bool:
        tree: Any = shapes
        for part in (*path.split("."), "__call__"):
            tree = tree.get(part, {})
        return bool(tree)

    return [path for path in paths if is_there(path)]


def _grid(request: Request, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns height and width of a layer's pixels or positions; None if it has only one."""
    name, x = next(iter(request.x.items()))
    if x.ndim == 4 and len(shape) == 4 and min(shape[1:3]) > 1 and name not in _embedded(request):
        return shape[1], shape[2]
    if len(shape) != 3:
        return None
    if x.ndim == 3 and shape[1] == x.shape[1]:
        return 1, shape[1]
    side = getattr(request.subject.model, "patch_size", None)
    if x.ndim == 4 and isinstance(side, int):
        grid = (x.shape[1] // side, x.shape[2] // side)
        return grid if shape[1] - grid[0] * grid[1] in (0, 1) else None
    return None


def _embedded(request: Request) -> Any:
    return request.subject.embedded


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(Method):
    """Attention followed through the layers to the input (Abnar and Zuidema, 2020).

    A layer passes on half of itself (its residual path) and half of the mean over its heads; the
    product over the layers says how much of each position reaches the one that is read. It does not
    depend on the target's class, and is at least 0.
    """

    is_finest: ClassVar[bool] = False

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return request.by_parts(self._rollout)

    def _rollout(self, request: Request) -> Inputs:
        name, x = next(iter(request.x.items()))
        weights = _attention(request.subject, request.params, request.x, request.rows)
        own = [w for path, w in weights if "cross" not in path and w.shape[1] == w.shape[2]]
        if not own:
            raise UserError(
                f"attention rollout needs layers of jdl.layers.Attention, which "
                f"{type(request.subject.model).__name__} lacks: use --method integrated_gradients"
            )
        if isinstance(request.subject.task, Translation):
            own = [w for path, w in weights if path.startswith("encoder")]
        reached = functools.reduce(lambda total, w: _mixed(w) @ total, own[1:], _mixed(own[0]))
        found = self._read(request, reached, [w for path, w in weights if "cross" in path])
        if x.ndim == 4:
            side = request.subject.model.patch_size  # pyright: ignore[reportAttributeAccessIssue]
            grid = (x.shape[1] // side, x.shape[2] // side)
            found = found[:, found.shape[1] - grid[0] * grid[1] :].reshape(len(found), *grid)
            found = np.asarray(jax.image.resize(found, (len(found), *x.shape[1:3]), "bilinear"))[
                ..., None
            ]
        else:
            found = found[..., None]
        return {name: found}

    def _read(self, request: Request, reached: np.ndarray, cross: list[np.ndarray]) -> np.ndarray:
        """Returns how much of each position reaches what the target reads, (rows, positions)."""
        target, rows = request.rows["target"], np.arange(request.count)
        if cross:
            return np.einsum("rk,rkp->rp", cross[-1][rows, target["position"]], reached)
        if "position" in target:
            return reached[rows, np.asarray(target["position"])]
        pool = getattr(request.subject.model, "pool", "first")
        return reached[:, 0] if pool == "first" else reached.mean(1)


def _mixed(weights: np.ndarray) -> np.ndarray:
    """Returns attention with the residual path, rows summing to 1."""
    mixed = weights + np.eye(weights.shape[-1], dtype=weights.dtype)
    return mixed / mixed.sum(-1, keepdims=True)


def _attention(subject: Any, params: Any, x: Inputs, rows: Any) -> list[tuple[str, np.ndarray]]:
    """Returns path and attention of each layer in order, means over heads (rows, time, keys)."""
    found: list[tuple[str, np.ndarray]] = []
    sown = _sown(subject, params, x, rows)
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        each = np.asarray(leaf, np.float32)
        # Of a scan over layers (layers, rows, heads, time, keys).
        found += [(name, w.mean(1)) for w in (each if each.ndim == 5 else each[None])]
    return sorted(found, key=lambda pair: _natural(pair[0]))


@functools.partial(jax.jit, static_argnums=0)
def _sown(subject: Any, params: Any, x: Inputs, rows: Any) -> Any:
    """Returns the attention that layers sow."""
    return subject.outputs(params, subject.batch(x, rows), collect=(WEIGHTS,))[1].get(WEIGHTS, {})


def _natural(name: str) -> list[Any]:
    """Sorts block_2 before block_10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part)
        for part in name.replace(".", "_").split("_")
    ]
