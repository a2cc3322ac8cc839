"""Learning-rate schedules over the optimizer steps of a run.

Durations are fractions of the run, so that a schedule scales with its length; end values are
fractions of the peak, so that it scales with the learning rate.
"""

import abc
import math
from collections import Counter
from dataclasses import dataclass

import optax

from jdl.errors import UserError


def check(owner: object, name: str, valid: bool, allowed: str) -> None:
    """Raises a UserError that names the field, what is allowed and the value, unless `valid`."""
    if not valid:
        value = getattr(owner, name)
        raise UserError(f"{type(owner).__name__}.{name} must be {allowed}; it is {value!r}")


@dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """The learning rate as a function of the optimizer steps taken so far."""

    warmup: float = 0.0
    """Fraction of the run, at least 0 and below 1, in which the rate rises linearly from 0."""

    def __post_init__(self) -> None:
        check(self, "warmup", 0 <= self.warmup < 1, "a fraction of the run, at least 0 and below 1")

    @abc.abstractmethod
    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Builds the Optax schedule.

        Args:
          peak: the highest learning rate.
          steps: optimizer steps in the whole run, at least 1.

        Returns:
          A function from the steps taken so far, 0 before the first, to the learning rate.
        """

    def feedback(self) -> optax.GradientTransformation:
        """A transformation that scales the final updates by the observed loss."""
        return optax.identity()

    def warmup_steps(self, steps: int) -> int:
        """Warm-up steps in a run of `steps`; at least one step follows them."""
        return min(round(self.warmup * steps), steps - 1)


def warm_up(peak: float, steps: int, then: optax.Schedule, start: float = 0.0) -> optax.Schedule:
    """Rises linearly to `peak` in `steps` (Goyal et al., 2017, §2.2), then follows `then`.

    `then` counts its own steps, from 0 at the end of the warm-up.
    """
    if steps == 0:
        return then
    return optax.join_schedules([optax.linear_schedule(start, peak, steps), then], [steps])


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """A constant rate after the warm-up."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`."""
        return warm_up(peak, self.warmup_steps(steps), optax.constant_schedule(peak))


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Step decay: multiplies the rate by `factor` at given points of the run.

    The defaults are those of ResNet on CIFAR-10, at 32k and 48k of 64k steps (He et al., 2016,
    §4.2); `at=(1/3, 2/3)` gives ImageNet's every 30 of 90 epochs.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    """Where the rate drops, as fractions of the whole run (warm-up included), increasing."""
    factor: float = 0.1  # multiplier of the rate at each drop, above 0 and at most 1

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = all(a < b for a, b in zip((self.warmup, *self.at), (*self.at, 1.0), strict=True))
        check(self, "at", ordered, "increasing fractions of the run, above the warm-up and below 1")
        check(self, "factor", 0 < self.factor <= 1, "above 0 and at most 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`; drops that coincide in a short run all apply."""
        start = self.warmup_steps(steps)
        drops = Counter(max(round(point * steps) - start, 0) for point in self.at)
        scales = {boundary: self.factor**count for boundary, count in drops.items()}
        return warm_up(peak, start, optax.piecewise_constant_schedule(peak, scales))


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """Exponential decay from the peak to `end` times the peak.

    "Times 0.97 every 2.4 epochs" in a run of 350 epochs is `end=0.97 ** (350 / 2.4)`.
    """

    end: float = 0.01
    """The rate after the last step, as a fraction of the peak: above 0 and at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "end", 0 < self.end <= 1, "a fraction of the peak, above 0 and at most 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`."""
        start = self.warmup_steps(steps)
        return warm_up(peak, start, optax.exponential_decay(peak, steps - start, self.end))


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Linear decay from the peak to `end` times the peak.

    With `warmup=0.01` this is how BERT was trained (Devlin et al., 2019, appendix A.2); with a
    `start` it is the triangle of Smith (2017).
    """

    start: float = 0.0  # the rate at the first step of a warm-up, as a fraction of the peak
    end: float = 0.0  # the rate after the last step, as a fraction of the peak: from 0 to 1
    until: float = 1.0  # fraction of the run, above the warm-up, from which on the rate is `end`

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "end"):
            check(self, name, 0 <= getattr(self, name) <= 1, "a fraction of the peak, from 0 to 1")
        valid = self.warmup < self.until <= 1
        check(self, "until", valid, "a fraction of the run, above the warm-up and at most 1")
        check(self, "start", not self.start or self.warmup > 0, "0 without a warm-up")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`."""
        begin = self.warmup_steps(steps)
        fall = max(round(self.until * steps) - begin, 1)
        then = optax.linear_schedule(peak, self.end * peak, fall)
        return warm_up(peak, begin, then, self.start * peak)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine decay from the peak to `end` times the peak.

    Loshchilov and Hutter, 2017 (SGDR), equation 5, without restarts.
    """

    end: float = 0.0  # the rate after the last step, as a fraction of the peak: from 0 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "end", 0 <= self.end <= 1, "a fraction of the peak, from 0 to 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`."""
        start = self.warmup_steps(steps)
        return warm_up(peak, start, optax.cosine_decay_schedule(peak, steps - start, self.end))


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """The 1cycle policy (Smith and Topin, 2018): cosine rise, then cosine decay.

    Momentum is not cycled. Defaults and shape are those of Optax, PyTorch and fastai.
    """

    warmup: float = 0.3
    """Fraction of the run, at least 0 and below 1, in which the rate rises to the peak."""
    div_factor: float = 25.0  # the peak over the rate at the first step, at least 1
    final_div_factor: float = 1e4
    """The rate at the first step over the rate after the last, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("div_factor", "final_div_factor"):
            check(self, name, 1 <= getattr(self, name) < math.inf, "finite and at least 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`."""
        return optax.cosine_onecycle_schedule(
            steps, peak, self.warmup, self.div_factor, self.final_div_factor
        )


@dataclass(frozen=True, kw_only=True)
class RangeTest(Schedule):
    """Exponential growth from `start` times the peak to the peak.

    For finding a learning rate (Smith, 2017, §3.3, in geometric steps): `jdl find-lr` uses it.
    """

    start: float = 1e-8
    """The rate at the first step, as a fraction of the peak: above 0 and below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "start", 0 < self.start < 1, "a fraction of the peak, above 0 and below 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`; the rate of the last step is the peak."""
        start, low = self.warmup_steps(steps), peak * self.start
        last = max(steps - start - 1, 1)
        return warm_up(low, start, optax.exponential_decay(low, last, 1 / self.start))


@dataclass(frozen=True, kw_only=True)
class ReduceOnPlateau(Schedule):
    """Multiplies the rate by `factor` whenever the training loss stops falling.

    The loss is the training loss, averaged over `accumulation_size` optimizer steps
    (`optax.contrib.reduce_on_plateau`); the other defaults are Optax's.
    """

    factor: float = 0.1  # multiplier of the rate on a plateau, above 0 and below 1
    patience: int = 10  # consecutive averages without improvement before a reduction, at least 1
    cooldown: int = 0  # averages after a reduction that do not count toward the patience
    accumulation_size: int = 100  # optimizer steps per average, at least 1
    min_scale: float = 0.0  # the lowest rate, as a fraction of the peak: from 0 to 1
    rtol: float = 1e-4
    """Relative decrease of the average that counts as improvement, above 0 and at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "factor", 0 < self.factor < 1, "above 0 and below 1")
        check(self, "patience", self.patience >= 1, "at least 1")
        check(self, "cooldown", self.cooldown >= 0, "at least 0")
        check(self, "accumulation_size", self.accumulation_size >= 1, "at least 1")
        check(self, "min_scale", 0 <= self.min_scale <= 1, "a fraction of the peak, from 0 to 1")
        check(self, "rtol", 0 < self.rtol <= 1, "above 0 and at most 1")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """As in `Schedule.build`, before any plateau."""
        return warm_up(peak, self.warmup_steps(steps), optax.constant_schedule(peak))

    def feedback(self) -> optax.GradientTransformation:
        """Scales the updates; its `update` needs `value=`, the mean loss of the batch."""
        return optax.contrib.reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.rtol,
            cooldown=self.cooldown,
            accumulation_size=self.accumulation_size,
            min_scale=self.min_scale,
        )
