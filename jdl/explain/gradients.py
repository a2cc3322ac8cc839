"""Attributions by gradients in the input."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jdl.errors import UserError
from jdl.explain.baselines import Baseline
from jdl.explain.method import Method, Request, column, taken
from jdl.explain.subject import Inputs, Rows, Subject
from jdl.typing import Key, PyTree

Array = jax.Array

RANDOMIZED_STEPS = 256
"""Steps of a network whose weights a check randomizes: only the order of its sites is compared."""

PANEL = 256
"""Most points of one Gauss-Legendre rule: its nodes are eigenvalues of a matrix of this size."""


@dataclass(frozen=True, kw_only=True)
class Gradient(Method):
    """The gradient of the scalar in the input (Simonyan et al., 2014), with its sign."""

    is_local: ClassVar[bool] = True

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return gradient(request)


@dataclass(frozen=True, kw_only=True)
class InputXGradient(Method):
    """The gradient times the input (Shrikumar et al., 2016)."""

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        found = gradient(request)
        return {name: x * found[name] for name, x in request.x.items()}


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Method):
    """The mean gradient at noisy inputs (Smilkov et al., 2017)."""

    samples: int = 32  # noisy copies of each input
    noise: float = 0.15  # deviation, as a share of the input's range in its row

    is_local: ClassVar[bool] = True

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        return self._smooth(request)

    def _smooth(self, request: Request) -> Inputs:
        noisy = {
            name: self.noise * column(x.max(_inner(x)) - x.min(_inner(x)), x)
            for name, x in request.x.items()
        }
        total = jax.tree.map(np.zeros_like, request.x)
        for index, number, fresh in request.pairs(self.samples):
            weights = (np.arange(len(index)) < fresh) / self.samples
            found = _at_noise(
                request.subject, request.params, request.x, noisy, request.rows, request.key,
                index, number, weights.astype(np.float32),
            )  # fmt: skip
            total = jax.tree.map(lambda a, b: a + np.asarray(b), total, found)
        return total


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Method):
    """The gradient integrated from a baseline to the input (Sundararajan et al., 2017).

    By Gauss-Legendre quadrature, on equal parts of the path where there are many steps. The steps
    of rows whose attributions do not yet sum to the scalar's difference are doubled, up to
    `max_steps`, or 256 where a check randomizes the network; copies of the rows are evaluated in
    chunks, so that memory does not grow with the steps.
    """

    steps: int = 32  # points on the path at first
    max_steps: int = 8192  # at last
    tolerance: float = 0.01
    """Error at which a row has converged: relative to the larger of the scalar's difference from
    the baseline and 1 % of that difference's deviation over the rows."""
    baseline: Baseline = Baseline()  # where the path begins

    is_complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.max_steps:
            raise UserError(
                f"IntegratedGradients needs 1 <= steps <= max_steps, not {self.steps} and "
                f"{self.max_steps}"
            )

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        bases = each_baseline(self.baseline, request)
        found = [self._integrate(request, base) for base in bases]
        return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *found)

    def baseline_scores(self, request: Request) -> np.ndarray:
        """See `Method.baseline_scores`."""
        return mean_scores(self.baseline, request)

    def _integrate(self, request: Request, base: Inputs) -> Inputs:
        """Returns the attributions from one baseline, with twice the steps until they converge."""
        scores = request.scores()
        wanted = scores - request.scores(base)
        scale = np.maximum(np.abs(wanted), max(0.01 * float(wanted.std()), 1e-12))
        total = request.count * self.steps
        chunks = math.ceil(total / request.points(total))
        points = math.ceil(total / chunks)  # the last chunk, too, is hardly padded
        found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), request.x)
        is_trained = request.params is request.subject.params
        most = self.max_steps if is_trained else min(self.max_steps, RANDOMIZED_STEPS)
        rows, steps = np.arange(request.count), self.steps
        while True:
            new = self._quadrature(request, base, rows, steps, points)
            if steps == self.steps and wanted.any() and is_trained:
                check_gradient(request, new)
            for name, values in new.items():
                found[name][rows] = values[rows]
            flat = [values.reshape(request.count, -1) for values in found.values()]
            sums = sum(each.sum(1, dtype=np.float64) for each in flat)
            error = np.abs(sums - wanted) / scale
            rows, steps = np.flatnonzero(error > self.tolerance), 2 * steps
            if not len(rows) or steps > most:
                return found

    def _quadrature(
        self, request: Request, base: Inputs, rows: np.ndarray, steps: int, points: int
    ) -> Inputs:
        """Returns the difference from the baseline times the mean gradient on the path."""
        nodes, weights = quadrature(steps)
        total = jax.tree.map(np.zeros_like, request.x)
        for index, step, fresh in request.pairs(steps, rows, points):
            own = np.where(np.arange(points) < fresh, weights[step], 0)
            found = _on_path(
                request.subject, request.params, request.x, base, request.rows,
                index, nodes[step].astype(np.float32), own.astype(np.float32),
            )  # fmt: skip
            total = jax.tree.map(lambda a, b: a + np.asarray(b), total, found)
        return {name: total[name] * (x - base[name]) for name, x in request.x.items()}


def quadrature(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes in [0, 1] and weights, (steps,) float64 each, of Gauss-Legendre rules in a row.

    There is one rule for each of several equal parts, where one would have more than `PANEL`
    points and their number can be halved.
    """
    parts = 1
    while steps // parts > PANEL and steps % (2 * parts) == 0:
        parts *= 2
    nodes, weights = np.polynomial.legendre.leggauss(steps // parts)
    starts = np.arange(parts)[:, None]
    return (starts + (nodes + 1) / 2).ravel() / parts, np.tile(weights / 2, parts) / parts


def gradient(request: Request) -> Inputs:
    """Returns the gradient of the scalar in the inputs.

    Raises:
      UserError: it is 0 for all rows.
    """
    found = request.by_parts(lambda part: part.subject.gradient(part.params, part.x, part.rows)[1])
    if request.params is request.subject.params:
        check_gradient(request, found)
    return found


def check_gradient(request: Request, found: Inputs) -> None:
    """Raises a UserError if the gradient is 0 in all inputs of all rows, or not finite."""
    leaves = jax.tree.leaves(found)
    names, model = ", ".join(map(repr, found)), type(request.subject.model).__name__
    if any(leaf.any() for leaf in leaves) and all(np.isfinite(leaf).all() for leaf in leaves):
        return
    what = "0 everywhere" if all(np.isfinite(leaf).all() for leaf in leaves) else "not finite"
    raise UserError(
        f"the gradient of {model} in {names} is {what}, as of a model that rounds or thresholds "
        f"its input: explain it with a method that only evaluates it (--method occlusion, lime, "
        f"kernel_shap or shapley_sampling)"
    )


def each_baseline(baseline: Baseline, request: Request) -> list[Inputs]:
    """Returns the baselines one by one, (rows, ...) for each input."""
    found = baseline.of(request)
    count = len(next(iter(found.values())))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(count)]


def mean_scores(baseline: Baseline, request: Request) -> np.ndarray:
    """Returns the scalar of each row at its baseline, of several the mean."""
    return np.mean([request.scores(base) for base in each_baseline(baseline, request)], 0)


@functools.partial(jax.jit, static_argnums=0)
def _on_path(
    subject: Subject,
    params: PyTree,
    x: Inputs,
    base: Inputs,
    rows: Rows,
    index: Any,
    alphas: Any,
    weights: Any,
) -> Inputs:
    """Returns the weighted sum of gradients at points between baseline and input."""

    def points(x: Array, base: Array) -> Array:
        return base[index] + column(alphas, x) * (x - base)[index]

    return _weighted(subject, params, jax.tree.map(points, x, base), rows, index, weights)


@functools.partial(jax.jit, static_argnums=0)
def _at_noise(
    subject: Subject,
    params: PyTree,
    x: Inputs,
    deviation: Inputs,
    rows: Rows,
    key: Key,
    index: Any,
    numbers: Any,
    weights: Any,
) -> Inputs:
    """Returns the weighted sum of gradients at noisy inputs."""

    def keys(index: Array, number: Array) -> Key:
        return jax.random.fold_in(jax.random.fold_in(key, index), number)

    def noise(own: Key, x: Array, place: int) -> Array:
        return jax.random.normal(jax.random.fold_in(own, place), x.shape[1:])

    own = jax.vmap(keys)(index, numbers)
    noisy = {
        name: each[index]
        + deviation[name][index] * jax.vmap(noise, (0, None, None))(own, each, place)
        for place, (name, each) in enumerate(x.items())
    }
    return _weighted(subject, params, noisy, rows, index, weights)


def _weighted(
    subject: Subject, params: PyTree, points: Inputs, rows: Rows, index: Array, weights: Array
) -> Inputs:
    """Returns for each row the weighted sum of gradients at its points."""
    _, found = subject.value_and_gradient(params, points, taken(rows, index))
    count = len(rows["batch"]["mask"])

    def total(leaf: Array) -> Array:
        return jax.ops.segment_sum(leaf * column(weights, leaf), index, count)

    return jax.tree.map(total, found)


def _inner(x: Any) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))
