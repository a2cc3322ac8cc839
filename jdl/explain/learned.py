"""What a network has learned: first filters, top examples of channels, inputs that excite them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.explain.method import Request
from jdl.paths import path_name
from jdl.typing import PyTree

Array = jax.Array


def filters(params: PyTree) -> tuple[str, np.ndarray]:
    """Returns path and kernels of the first convolution, (filters, height, width, channels).

    Raises:
      UserError: no kernel is of a 2D convolution with more than one pixel.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if np.ndim(leaf) == 4 and np.shape(leaf)[0] * np.shape(leaf)[1] > 1:
            return path_name(path), np.moveaxis(np.asarray(leaf), -1, 0)
    raise UserError(
        "the model has no 2D convolution whose filters could be shown: use --method top_examples "
        "with a layer"
    )


@dataclass(frozen=True)
class TopExamples:
    """The examples on which channels of a layer are strongest.

    Attributes:
      layer: its path.
      channels: numbers of the channels, (channels,).
      indices: of the examples, the strongest first, (channels, examples).
      values: mean outputs of the channel, (channels, examples).
    """

    layer: str
    channels: np.ndarray
    indices: np.ndarray
    values: np.ndarray


def top_examples(
    request: Request, layer: str | None = None, channels: Sequence[int] = (), count: int = 6
) -> TopExamples:
    """Finds the examples among the rows on which channels of a layer are strongest on average.

    Args:
      request: of the examples.
      layer: path of a module; None: the last with several pixels or positions, else the last but
        the outputs.
      channels: numbers of the channels; (): the first eight.
      count: examples of each channel.

    Raises:
      UserError: there is no such layer or channel.
    """
    layer = layer or default_layer(request)
    found = activations(request, layer)
    means = found.reshape(len(found), -1, found.shape[-1]).mean(1)
    chosen = np.array(channels or range(min(8, means.shape[1])), int)
    check_channels(chosen, means.shape[1], layer)
    order = np.argsort(-means[:, chosen], 0, kind="stable")[:count].T
    return TopExamples(layer, chosen, order, np.take_along_axis(means[:, chosen].T, order, 1))


def activations(request: Request, layer: str) -> np.ndarray:
    """Returns the outputs of a layer for the rows, (rows, ...).

    Raises:
      UserError: there is no such layer.
    """
    first = request.take(np.arange(1))
    first.subject.layer(layer, first.x, first.rows)
    return request.by_parts(
        lambda part: _activations(part.subject, (layer,), part.params, part.x, part.rows)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _activations(subject: Any, paths: tuple[str, ...], params: PyTree, x: Any, rows: Any) -> Array:
    return subject.activations(params, x, rows, paths)[paths[0]]


def default_layer(request: Request) -> str:
    """Returns the last layer with several pixels or positions, else the last before the outputs."""
    first = request.take(np.arange(1))
    found = first.subject.layers(first.x, first.rows)
    wide = [path for path, leaf in found if leaf.ndim == 4 and min(leaf.shape[1:3]) > 1]
    flat = [path for path, leaf in found if leaf.ndim == 2]
    if wide:
        return wide[-1]
    if len(flat) > 1:
        return flat[-2]
    return found[-1][0]


def check_channels(channels: np.ndarray, count: int, layer: str) -> None:
    """Raises a UserError if a layer lacks one of the channels."""
    wrong = channels[(channels < 0) | (channels >= count)]
    if wrong.size:
        raise UserError(f"{layer} has no channel {wrong[0]}: it has {count}")


def maximize(
    request: Request,
    layer: str | None = None,
    channels: Sequence[int] = (),
    steps: int = 128,
    rate: float = 0.05,
    blur: float = 0.5,
) -> tuple[str, np.ndarray, np.ndarray]:
    """Finds inputs that excite channels of a layer (activation maximization; Erhan et al., 2009).

    Ascent of the channel's mean output from noise, with normalized gradients, random shifts by a
    pixel (Olah et al., 2017) and a decay toward the mean of the rows; the input stays in the rows'
    range.

    Args:
      request: of examples, whose mean and range the inputs start from and stay in.
      layer: path of a module; None: see `top_examples`.
      channels: numbers of the channels; (): the first eight.
      steps: of the ascent.
      rate: of a step, as a share of the range.
      blur: share of each step's image that is the mean of its neighbors', times `rate`.

    Returns:
      The layer, inputs (channels, ...) and the channels' mean outputs there.

    Raises:
      UserError: the inputs are not one array of real numbers, or there is no such channel.
    """
    subject = request.subject
    if len(request.x) != 1 or subject.embedded:
        raise UserError(
            "activation maximization needs a model of one real input, such as an image: use "
            "--method top_examples"
        )
    layer = layer or default_layer(request)
    first = request.take(np.arange(1))
    _, leaf = subject.layer(layer, first.x, first.rows)
    chosen = np.array(channels or range(min(8, leaf.shape[-1])), int)
    check_channels(chosen, leaf.shape[-1], layer)
    ((name, x),) = request.x.items()
    low, high = float(x.min()), float(x.max())
    shape = (len(chosen), *x.shape[1:])
    begin = x.mean(0) + 0.1 * (high - low) * np.asarray(jax.random.normal(request.key, shape))
    rows = jax.tree.map(lambda leaf: jnp.asarray(np.repeat(leaf[:1], len(chosen), 0)), request.rows)
    pixels = x.ndim == 4

    def mean(image: Array) -> Array:
        found = subject.activations(request.params, {name: image}, rows, (layer,))[layer]
        own = jnp.take_along_axis(
            found.reshape(len(chosen), -1, found.shape[-1]), chosen[:, None, None], 2
        )
        return own.mean((1, 2))

    def step(image: Array, number: Array) -> tuple[Array, None]:
        shift = jax.random.randint(jax.random.fold_in(request.key, number), (2,), -1, 2)
        moved = jnp.roll(image, shift, (1, 2)) if pixels else image
        gradient = jax.grad(lambda image: mean(image).sum())(moved)
        inner = tuple(range(1, image.ndim))
        size = jnp.sqrt((gradient**2).mean(inner, keepdims=True))
        moved = moved + rate * (high - low) * gradient / jnp.maximum(size, 1e-12)
        if pixels:
            near = sum(jnp.roll(moved, by, axis) for axis in (1, 2) for by in (-1, 1)) / 4
            moved = (1 - blur * rate * 4) * moved + blur * rate * 4 * near
        moved = jnp.roll(moved, -shift, (1, 2)) if pixels else moved
        return jnp.clip(moved, low, high), None

    def ascend(image: Array) -> tuple[Array, Array]:
        last, _ = jax.lax.scan(step, image, jnp.arange(steps))
        return last, mean(last)

    found, values = jax.jit(ascend)(begin.astype(np.float32))
    return layer, np.asarray(found), np.asarray(values)
