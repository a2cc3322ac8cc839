"""Paths from data to noise, and what a model can predict of a point on one."""

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

Array = jax.Array

Time = jax.Array | float
"""A time on a path, () or (batch,) float32."""

Target = Literal["noise", "v", "velocity"]
"""What a model predicts: the noise (Ho et al., 2020), v = alpha noise - sigma data (Salimans and
Ho, 2022), or the velocity dx/dt of flow matching (Lipman et al., 2023)."""


@dataclass(frozen=True)
class NoisePath(abc.ABC):
    """The points x(t) = alpha(t) data + sigma(t) noise: the data at time 0, all but noise at `end`.

    The arrays are (batch, ...).
    """

    begin: ClassVar[float] = 0.0
    """The smallest time that is trained on."""
    end: ClassVar[float] = 1.0
    """The largest time, at which sampling begins."""
    ends_in_noise: ClassVar[bool] = False
    """Whether alpha is 0 there, so that `noise` does not say what the data are."""

    @abc.abstractmethod
    def alpha(self, t: Time) -> Array:
        """Returns the factor of the data, 1 at time 0, falling."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Array:
        """Returns the factor of the noise, 0 at time 0, rising."""

    def times(self, num_steps: int, start: Time | None = None) -> Array:
        """Returns the times of a sampler's steps, (num_steps + 1,), from `start` (`end`) to 0."""
        return (self.end if start is None else start) * jnp.linspace(1.0, 0.0, num_steps + 1)

    def point(self, data: Array, noise: Array, t: Time) -> Array:
        """Returns x(t)."""
        return _expand(self.alpha(t), data) * data + _expand(self.sigma(t), data) * noise

    def velocity(self, data: Array, noise: Array, t: Time) -> Array:
        """Returns dx/dt."""
        alpha, sigma = self._rates(t)
        return _expand(alpha, data) * data + _expand(sigma, data) * noise

    def target(self, kind: Target, data: Array, noise: Array, t: Time) -> Array:
        """Returns what a model predicts at x(t)."""
        if kind == "noise":
            return noise
        if kind == "velocity":
            return self.velocity(data, noise, t)
        return _expand(self.alpha(t), data) * noise - _expand(self.sigma(t), data) * data

    def data_and_noise(
        self, kind: Target, prediction: Array, x: Array, t: Time
    ) -> tuple[Array, Array]:
        """Returns the data and the noise of which x is the point at time t: inverts `target`.

        That of `noise` needs an alpha above 0.
        """
        alpha, sigma = (_expand(f(t), x) for f in (self.alpha, self.sigma))
        if kind == "noise":
            return (x - sigma * prediction) / alpha, prediction
        if kind == "v":
            scale = alpha**2 + sigma**2
            return (
                (alpha * x - sigma * prediction) / scale,
                (sigma * x + alpha * prediction) / scale,
            )
        falling, rising = (_expand(rate, x) for rate in self._rates(t))
        scale = alpha * rising - falling * sigma
        return (
            (rising * x - sigma * prediction) / scale,
            (alpha * prediction - falling * x) / scale,
        )

    def _rates(self, t: Time) -> tuple[Array, Array]:
        """Returns the derivatives of alpha and sigma."""
        t = jnp.asarray(t, jnp.float32)
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]


@dataclass(frozen=True)
class LinearPath(NoisePath):
    """The straight path of rectified flow: alpha = 1 - t, sigma = t (Liu et al., 2023)."""

    ends_in_noise: ClassVar[bool] = True

    def alpha(self, t: Time) -> Array:
        """See `NoisePath.alpha`."""
        return 1.0 - jnp.asarray(t)

    def sigma(self, t: Time) -> Array:
        """See `NoisePath.sigma`."""
        return jnp.asarray(t)


@dataclass(frozen=True)
class CosinePath(NoisePath):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol and Dhariwal, 2021, without offset)."""

    end: ClassVar[float] = 0.995  # at 1, alpha is 0: noise says nothing about data

    def alpha(self, t: Time) -> Array:
        """See `NoisePath.alpha`."""
        return jnp.cos(jnp.pi / 2 * t)

    def sigma(self, t: Time) -> Array:
        """See `NoisePath.sigma`."""
        return jnp.sin(jnp.pi / 2 * t)


@dataclass(frozen=True)
class VariancePreserving(NoisePath):
    """The diffusion whose rate rises linearly (Ho et al., 2020; Song et al., 2021, equation 11).

    alpha = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2), and sigma^2 = 1 - alpha^2.
    """

    beta_min: float = 0.1  # rate at time 0
    beta_max: float = 20.0  # rate at time 1

    begin: ClassVar[float] = 1e-3  # sigma has no derivative at 0

    def alpha(self, t: Time) -> Array:
        """See `NoisePath.alpha`."""
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Time) -> Array:
        """See `NoisePath.sigma`."""
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def times(self, num_steps: int, start: Time | None = None) -> Array:
        """See `NoisePath.times`; quadratic, as sigma begins like the root of t."""
        return (self.end if start is None else start) * jnp.linspace(1.0, 0.0, num_steps + 1) ** 2

    def _log_alpha(self, t: Time) -> Array:
        t = jnp.asarray(t)
        return -(self.beta_max - self.beta_min) * t**2 / 4 - self.beta_min * t / 2


def _expand(values: Time, x: Array) -> Array:
    """Returns numbers () or (batch,) so that they broadcast against x (batch, ...)."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values
