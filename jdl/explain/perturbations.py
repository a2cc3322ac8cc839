"""Attributions by evaluating the scalar where features of the input are replaced."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.explain.baselines import Baseline
from jdl.explain.gradients import each_baseline, mean_scores
from jdl.explain.method import Method, Request, taken
from jdl.explain.subject import Inputs, Rows, Subject
from jdl.typing import PyTree

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Occlusion(Method):
    """The scalar's fall where a window, or a feature, has the baseline's values.

    Zeiler and Fergus (2014). An element has the mean over the windows that cover it.
    """

    window: int | None = None
    """Side of a window of an image in pixels; None: the features of the input, one at a time
    (feature ablation): cells of a grid, tokens, columns of a table."""
    stride: int | None = None  # pixels between windows; None: half a window
    baseline: Baseline = Baseline()  # what replaces them

    is_finest: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(f"{name} of Occlusion is at least 1 pixel, not {size}")

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        if self.window is None:
            return spread(request, self._ablate(request), shared=False)
        name, x = next(iter(request.x.items()))
        if len(request.x) > 1 or x.ndim != 4:
            raise UserError(
                "a window slides over one image: leave the window of Occlusion out to replace "
                "features instead"
            )
        return {name: self._slide(request)}

    def _ablate(self, request: Request) -> np.ndarray:
        keep = 1 - np.eye(request.num_features, dtype=np.float32)
        return request.scores()[:, None] - masked_scores(request, keep, self.baseline)

    def _slide(self, request: Request) -> np.ndarray:
        """Returns the mean falls of the windows that cover a pixel, (rows, height, width, 1)."""
        ((name, x),) = request.x.items()
        assert self.window is not None
        side, stride = self.window, self.stride or max(1, self.window // 2)
        starts = [
            np.arange(1 + max(0, math.ceil((size - side) / stride))) * stride
            for size in x.shape[1:3]
        ]
        corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2)
        scores = np.zeros((len(corners), request.count))
        bases = each_baseline(self.baseline, request)
        for base in bases:
            for index, window, fresh in request.pairs(len(corners)):
                found = _windowed(
                    request.subject, request.params, name, x, base[name], request.rows,
                    index, corners[window], side,
                )  # fmt: skip
                scores[window[:fresh], index[:fresh]] += np.asarray(found)[:fresh] / len(bases)
        falls, total = request.scores() - scores, np.zeros(x.shape[:3])
        covered = np.zeros(x.shape[1:3])
        for (top, left), fall in zip(corners, falls, strict=True):
            place = np.s_[top : top + side, left : left + side]
            total[(slice(None), *place)] += fall[:, None, None]
            covered[place] += 1
        return (total / np.maximum(covered, 1))[..., None].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class KernelSHAP(Method):
    """Shapley values of features by weighted least squares (Lundberg and Lee, 2017).

    Over all coalitions of features if there are at most `samples`, and the values are then exact;
    else over pairs of a random coalition and its complement (Covert and Lee, 2021).
    """

    samples: int = 2048  # coalitions
    baseline: Baseline = Baseline()  # what stands for features that are not in a coalition

    is_complete: ClassVar[bool] = True
    is_finest: ClassVar[bool] = False

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return spread(request, self.values(request))

    def baseline_scores(self, request: Request) -> np.ndarray:
        """See `Method.baseline_scores`."""
        return mean_scores(self.baseline, request)

    def values(self, request: Request) -> np.ndarray:
        """Returns the Shapley value of each feature, (rows, features) float64."""
        count = request.num_features
        empty, whole = mean_scores(self.baseline, request), request.scores()
        difference = (whole.astype(np.float64) - empty)[:, None]
        if count == 1:
            return difference
        keep, weights = self._coalitions(request, count)
        scores = masked_scores(request, keep, self.baseline).astype(np.float64) - empty[:, None]
        # The last value is what the others leave of the difference, so that all sum to it.
        left = keep[:, :-1].astype(np.float64) - keep[:, -1:]
        wanted = scores - difference * keep[:, -1]
        root = np.sqrt(weights)[:, None]
        found, *_ = np.linalg.lstsq(left * root, wanted.T * root, rcond=None)
        return np.concatenate([found.T, difference - found.T.sum(1, keepdims=True)], 1)

    def _coalitions(self, request: Request, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns coalitions (n, features), neither empty nor whole, and their weights."""
        if 2**count - 2 <= self.samples:
            numbers = np.arange(1, 2**count - 1)
            keep = (numbers[:, None] >> np.arange(count) & 1).astype(np.float32)
            sizes = keep.sum(1).astype(int)
            weights = [(count - 1) / (math.comb(count, s) * s * (count - s)) for s in sizes]
            return keep, np.array(weights)
        rng = _generator(request)
        sizes = np.arange(1, count)
        chances = 1 / (sizes * (count - sizes))
        drawn = rng.choice(sizes, self.samples // 2, p=chances / chances.sum())
        orders = rng.random((len(drawn), count)).argsort(1)
        keep = (orders < drawn[:, None]).astype(np.float32)
        return np.concatenate([keep, 1 - keep]), np.ones(2 * len(drawn))


@dataclass(frozen=True, kw_only=True)
class ShapleySampling(Method):
    """Shapley values of features by random orders (Castro et al., 2009; Strumbelj, 2014).

    Each order is also taken backwards (Mitchell et al., 2022).
    """

    orders: int = 32  # random orders in which features join
    baseline: Baseline = Baseline()  # what stands for features that have not joined

    is_complete: ClassVar[bool] = True
    is_finest: ClassVar[bool] = False

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return spread(request, self._values(request))

    def baseline_scores(self, request: Request) -> np.ndarray:
        """See `Method.baseline_scores`."""
        return mean_scores(self.baseline, request)

    def _values(self, request: Request) -> np.ndarray:
        count, rng = request.num_features, _generator(request)
        half = rng.random((max(1, self.orders // 2), count)).argsort(1)
        orders = np.concatenate([half, half[:, ::-1]])
        ranks = orders.argsort(1)
        # (orders, joined, features): the first `joined` of an order.
        keep = ranks[:, None] < np.arange(count + 1)[:, None]
        flat = keep.reshape(-1, count).astype(np.float32)
        scores = masked_scores(request, flat, self.baseline)
        gains = np.diff(scores.reshape(request.count, len(orders), count + 1).astype(np.float64))
        return np.take_along_axis(gains, ranks[None], 2).mean(1)


@dataclass(frozen=True, kw_only=True)
class LIME(Method):
    """A linear model of the scalar near the input, by features (Ribeiro et al., 2016).

    Ridge regression on random coalitions, weighted by how much of the input they keep.
    """

    samples: int = 1024  # random coalitions
    width: float = 0.25  # of the exponential kernel on cosine distance
    ridge: float = 1e-3  # penalty, per sample
    baseline: Baseline = Baseline()  # what stands for features that are left out

    is_finest: ClassVar[bool] = False

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return spread(request, self._weights(request))

    def _weights(self, request: Request) -> np.ndarray:
        count, rng = request.num_features, _generator(request)
        keep = (rng.random((self.samples, count)) < 0.5).astype(np.float32)
        keep[0] = 1
        scores = masked_scores(request, keep, self.baseline).astype(np.float64)
        distance = 1 - np.sqrt(keep.mean(1))  # cosine distance to the coalition of all
        weights = np.exp(-((distance / self.width) ** 2))
        mean = (weights[:, None] * keep).sum(0) / weights.sum()
        middle = (scores * weights).sum(1, keepdims=True) / weights.sum()
        left = (keep - mean) * np.sqrt(weights)[:, None]
        wanted = ((scores - middle) * np.sqrt(weights)).T
        square = left.T @ left + self.ridge * self.samples * np.eye(count)
        return np.linalg.solve(square, left.T @ wanted).T


def masked_scores(request: Request, keep: np.ndarray, baseline: Baseline) -> np.ndarray:
    """Returns the scalar where only some features have their values, (rows, coalitions) float32.

    Args:
      request: with the features.
      keep: (coalitions, features), or (coalitions, rows, features) for coalitions of each row: 1
        for a feature with its own value, 0 for one with the baseline's.
      baseline: of several the scalar's mean.
    """
    ids = {name: jnp.asarray(each) for name, each in request.features.items()}
    bases, found = each_baseline(baseline, request), np.zeros((len(keep), request.count))
    for base in bases:
        for index, number, fresh in request.pairs(len(keep)):
            own = keep[number] if keep.ndim == 2 else keep[number, index]
            scores = _masked(
                request.subject, request.params, request.x, base, request.rows, ids, index, own
            )
            found[number[:fresh], index[:fresh]] += np.asarray(scores)[:fresh]
    return (found / len(bases)).T.astype(np.float32)


def spread(request: Request, values: np.ndarray, shared: bool = True) -> Inputs:
    """Returns the values of features (rows, features) as attributions of elements.

    Args:
      request: with the features.
      values: of each row and feature.
      shared: the elements of a feature share its value evenly, so that sums are kept; False: each
        has all of it.
    """
    found = {}
    for name, x in request.x.items():
        ids = np.broadcast_to(request.features[name], x.shape[1:])
        sizes = np.bincount(ids.ravel(), minlength=values.shape[1]) if shared else 1
        found[name] = (values / np.maximum(sizes, 1))[:, ids].astype(np.float32)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _masked(
    subject: Subject,
    params: PyTree,
    x: Inputs,
    base: Inputs,
    rows: Rows,
    ids: Any,
    index: Any,
    keep: Any,
) -> Array:
    """Returns the scalar of points, rows of which some features are kept, (points,)."""

    def mixed(x: Array, base: Array, ids: Array) -> Array:
        own = keep[:, ids]
        return own * x[index] + (1 - own) * base[index]

    points = {name: mixed(x[name], base[name], ids[name]) for name in x}
    return subject.score(params, points, taken(rows, index))


@functools.partial(jax.jit, static_argnums=(0, 2, 8))
def _windowed(
    subject: Subject,
    params: PyTree,
    name: str,
    x: Any,
    base: Any,
    rows: Rows,
    index: Any,
    corners: Any,
    side: int,
) -> Array:
    """Returns the scalar of points, rows of which a window is replaced, (points,)."""

    def covers(start: Array, size: int) -> Array:
        places = jnp.arange(size)
        return (places >= start[:, None]) & (places < start[:, None] + side)

    down, across = (covers(corners[:, axis], x.shape[1 + axis]) for axis in (0, 1))
    inside = down[:, :, None] & across[:, None]
    points = jnp.where(inside[..., None], base[index], x[index])
    return subject.score(params, {name: points}, taken(rows, index))


def _generator(request: Request) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(request.key)).ravel().tolist())
