"""Samplers: solvers of a path's differential equation from noise to data.

A model enters as a function `denoise(x, t)`, which returns the data and the noise of which it takes
x to be the point at time t, () float32. Each sampler is one `jax.lax.scan` over its steps. The last
step goes to the data that the model finds at the time before, where the noise is small.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jdl.diffusion.paths import NoisePath, Time
from jdl.errors import UserError
from jdl.typing import Keys

Array = jax.Array

Denoise = Callable[[Array, Any], tuple[Array, Array]]
"""`(x, t) -> (data, noise)`, with x (batch, ...) and t ()."""


@dataclass(frozen=True)
class Sampler(abc.ABC):
    """A sampler of `num_steps` steps; a subclass defines one of them."""

    num_steps: int = field(default=32, kw_only=False)  # from noise to data

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"a sampler takes at least 1 step, not {self.num_steps}")

    def __call__(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        keys: Keys,
        start: Time | None = None,
    ) -> Array:
        """Returns data (batch, ...) float32.

        Args:
          denoise: the model.
          path: on which it was trained.
          x: points at the time `start`, (batch, ...) float32: noise at the path's end.
          keys: one for each row, of the noise that a stochastic sampler adds.
          start: time of x, () float32; None: the path's end.
        """
        times = path.times(self.num_steps, start)

        def body(carry: tuple[Array, Any], at: Any) -> tuple[tuple[Array, Any], None]:
            x, memory = carry
            t, s, index = at
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            return self.step(denoise, path, x, t, s, memory, own), None

        steps = (times[:-2], times[1:-1], jnp.arange(self.num_steps - 1))
        (x, _), _ = jax.lax.scan(body, (x, self.memory(x, times[0])), steps)
        return denoise(x, times[-2])[0]

    def memory(self, x: Array, t: Time) -> Any:
        """Returns what the first step reads of those before it."""
        del x, t
        return ()

    @abc.abstractmethod
    def step(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        t: Time,
        s: Time,
        memory: Any,
        keys: Keys,
    ) -> tuple[Array, Any]:
        """Returns the point at time s < t, s > 0, and the memory of the next step."""


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on dx/dt: first order, one evaluation of the model in each step."""

    def step(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        t: Time,
        s: Time,
        memory: Any,
        keys: Keys,
    ) -> tuple[Array, Any]:
        """See `Sampler.step`."""
        del keys
        return x + (s - t) * path.velocity(*denoise(x, t), t), memory


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on dx/dt: second order, two evaluations in each step but the last.

    Karras et al. (2022), algorithm 1.
    """

    def step(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        t: Time,
        s: Time,
        memory: Any,
        keys: Keys,
    ) -> tuple[Array, Any]:
        """See `Sampler.step`."""
        del keys
        before = path.velocity(*denoise(x, t), t)
        reached = x + (s - t) * before
        after = path.velocity(*denoise(reached, s), s)
        return x + (s - t) * (before + after) / 2, memory


@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM (Song et al., 2021, equation 12): first order, one evaluation in each step."""

    eta: float = 0.0  # noise that a step renews; 1: DDPM's ancestral sampling

    def step(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        t: Time,
        s: Time,
        memory: Any,
        keys: Keys,
    ) -> tuple[Array, Any]:
        """See `Sampler.step`."""
        fresh = draw(keys, x.shape[1:]) if self.eta else jnp.zeros_like(x)
        return ddim_step(path, *denoise(x, t), t, s, self.eta, fresh), memory


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): second order, one evaluation in each step.

    It extrapolates the data of this step and the last in the half log signal-to-noise ratio.
    """

    def memory(self, x: Array, t: Time) -> Any:
        """See `Sampler.memory`: the data that the last step found, and its time."""
        return jnp.zeros_like(x), t

    def step(
        self,
        denoise: Denoise,
        path: NoisePath,
        x: Array,
        t: Time,
        s: Time,
        memory: Any,
        keys: Keys,
    ) -> tuple[Array, Any]:
        """See `Sampler.step`."""
        del keys
        last, u = memory
        data, _ = denoise(x, t)

        def rise(t: Time, s: Time) -> Array:
            return jnp.log(path.alpha(s) / path.sigma(s)) - jnp.log(path.alpha(t) / path.sigma(t))

        # The first step has no last one, nor has one from a time without any signal, which is
        # infinitely far: both are first order.
        share = jnp.where((u > t) & (path.alpha(u) > 0), rise(t, s) / (2 * rise(u, t)), 0.0)
        share = jnp.where(jnp.isfinite(share), share, 0.0)
        blend = data + share * (data - last)
        shrink = path.sigma(s) / path.sigma(t)
        # alpha_s (1 - exp(-h)), h being the rise.
        return shrink * x + (path.alpha(s) - path.alpha(t) * shrink) * blend, (data, t)


def ddim_step(
    path: NoisePath,
    data: Array,
    noise: Array,
    t: Time,
    s: Time,
    eta: float,
    fresh: Array,
) -> Array:
    """Returns the point at time s of data and noise found at t > s, some of the noise renewed.

    Args:
      path: of the points.
      data: (batch, ...).
      noise: (batch, ...).
      t: time at which they were found.
      s: time of the result.
      eta: 0 keeps the noise; 1 draws from the posterior of x(s) given x(t) and the data.
      fresh: standard normal noise, (batch, ...).
    """
    ratio = path.alpha(t) / path.alpha(s)
    added = jnp.sqrt(jnp.maximum(path.sigma(t) ** 2 - (ratio * path.sigma(s)) ** 2, 0.0))
    spread = eta * added * path.sigma(s) / path.sigma(t)
    kept = jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - spread**2, 0.0))
    return path.alpha(s) * data + kept * noise + spread * fresh


def draw(keys: Keys, shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise (batch, *shape) float32, each row by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
