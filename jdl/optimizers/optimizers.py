"""Optimizers as frozen dataclasses that build Optax transformations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from jdl.errors import UserError
from jdl.optimizers.lookahead import Lookahead
from jdl.optimizers.modules import freeze, scale_modules
from jdl.optimizers.pruning import Pruning
from jdl.optimizers.schedules import Constant, Schedule, check
from jdl.optimizers.transforms import (
    add_penalties,
    average_weights,
    decay_mask,
    matrix_axes,
    normalize_weights,
)
from jdl.tracing import is_zero
from jdl.typing import PyTree


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base class of optimizers: builds an Optax chain around a subclass's `direction`.

    The chain adds penalties to the gradient, clips it by value and then by norm, computes the
    method's step with decoupled weight decay, scales it by the scheduled learning rate and the
    module's multiplier, and averages the new parameters. Decay and penalties skip biases, scales of
    normalization layers and all arrays of fewer than two dimensions (`decay_mask`). Frozen modules
    are excluded from all of this.
    """

    learning_rate: float | optax.Schedule = field(default=1e-3, kw_only=False)
    """The peak of the schedule; or an Optax schedule, which then takes its place."""
    schedule: Schedule = Constant()
    """How the learning rate changes over the run."""
    clip_norm: float | None = None
    """Largest Euclidean norm of the whole gradient (Pascanu et al., 2013); None: no limit."""
    clip_value: float | None = None
    """Largest absolute value of a gradient's element; None: no limit."""
    weight_decay: float = 0.0
    """Decoupled decay (Loshchilov and Hutter, 2019): each step subtracts rate * this * weight."""
    l1: float = 0.0
    """Penalty on the sum of the weights' absolute values, part of the loss's gradient."""
    l2: float = 0.0
    """Penalty on the sum of the weights' squares, without 1/2, as in Keras."""
    decay_biases: bool = False
    """Apply decay and penalties to biases, scales and all other parameters too, as PyTorch does."""
    ema_decay: float | None = None
    """Decay of a debiased moving average (EMA) of the parameters, used to evaluate; None: off."""
    lookahead: Lookahead | None = None
    """Average of the parameters from which training continues; None: off."""
    pruning: Pruning | None = None
    """Weights that are set to zero during the run; None: none."""
    frozen: tuple[str, ...] = ()
    """Paths of modules whose parameters are not trained, such as Conv_0 or encoder.Dense_1."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Learning rate multipliers, as (module path, factor); the longest matching path wins."""
    every: int = 1
    """Batches per step: the gradients of the others are dropped, as for a player of a game whose
    opponent takes several steps for each of its own (`num_microbatches` accumulates instead)."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "l1", "l2"):
            value = 0 if callable(getattr(self, name)) else getattr(self, name)
            check(self, name, 0 <= value < math.inf, "finite and at least 0")
        for name in ("clip_norm", "clip_value"):
            limit = getattr(self, name)
            check(self, name, limit is None or 0 < limit < math.inf, "finite and above 0, or None")
        valid = self.ema_decay is None or 0 < self.ema_decay < 1
        check(self, "ema_decay", valid, "above 0 and below 1, or None")
        averaged = self.ema_decay is not None or self.lookahead is not None
        alone = self.pruning is None or not averaged
        check(self, "pruning", alone, "None with ema_decay or lookahead, which average")
        is_schedule = isinstance(self.schedule, Schedule)
        check(self, "schedule", is_schedule, "a schedule such as Cosine(warmup=0.1)")
        if callable(self.learning_rate):
            plain = self.schedule == Constant()
            check(self, "schedule", plain, "left out where learning_rate is an Optax schedule")
        factors = all(0 <= factor < math.inf for _, factor in self.lr_multipliers)
        check(self, "lr_multipliers", factors, "factors that are finite and at least 0")
        check(self, "every", self.every >= 1, "at least 1")
        self._check_method()

    def _check_method(self) -> None:
        """Checks the fields that several methods have, each with the same meaning in all."""
        for name in ("momentum", "decay", "b1", "b2", "beta"):
            check(self, name, 0 <= getattr(self, name, 0) < 1, "at least 0 and below 1")
        check(self, "eps", 0 < getattr(self, "eps", 1) < math.inf, "finite and above 0")
        still = getattr(self, "nesterov", False) and not getattr(self, "momentum", 1) > 0
        check(self, "nesterov", not still, "False without momentum")

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """The method: maps gradients to steps of unit learning rate, not yet negated.

        Args:
          add_decay: adds weight_decay * weight to a step; the method decides where.
        """
        raise NotImplementedError

    def rate(self, steps: int) -> optax.Schedule:
        """The scheduled learning rate by optimizer steps taken, in a run of `steps`."""
        if steps < 1:
            raise UserError(f"a schedule needs at least one optimizer step; the run has {steps}")
        if callable(self.learning_rate):
            return self.learning_rate
        return self.schedule.build(self.learning_rate, steps)

    def build(
        self, steps: int, factor: Callable[[int], optax.Schedule] | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation for a run.

        Args:
          steps: batches in the whole run, at least 1; micro-batches do not count. The schedule
            counts the steps that are taken, `steps / every`.
          factor: from the number of those steps, a schedule by which each is multiplied before
            the parameters are constrained and averaged: that of a `Partition`.

        Returns:
          A transformation whose state holds arrays only, in a structure that does not change.
          Call `update(gradients, state, params, value=loss)` with the mean loss of the batch,
          a float32 scalar, used only by `ReduceOnPlateau`.

        Raises:
          UserError: `steps` is below 1; or, from `init`, `frozen` or `lr_multipliers` names
            a module that does not exist.
        """
        none = optax.identity()
        steps = -(-steps // self.every)
        mask = None if self.decay_biases else decay_mask
        method = optax.chain(
            add_penalties(self.l1, self.l2, mask),
            none if self.clip_value is None else optax.clip(self.clip_value),
            none if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm),
            *self._steps(steps, optax.add_decayed_weights(self.weight_decay, mask)),
            none if factor is None else scale(factor(steps)),
            scale_modules(self.lr_multipliers) if self.lr_multipliers else none,
            self.schedule.feedback(),
            self._constraint(),
            none if self.lookahead is None else self.lookahead.build(steps),
            none if self.ema_decay is None else average_weights(self.ema_decay),
            *([] if self.pruning is None else [self.pruning.build(steps)]),
        )
        if self.every > 1:  # after the opponents have taken theirs
            method = optax.conditionally_mask(method, self._is_due)
        return freeze(method, self.frozen) if self.frozen else method

    def _steps(
        self, steps: int, add_decay: optax.GradientTransformation
    ) -> Sequence[optax.GradientTransformation]:
        """The part of the chain that maps gradients to negative steps."""
        return self.direction(add_decay), optax.scale_by_learning_rate(self.rate(steps))

    def _is_due(self, step: Any, **extra_args: Any) -> jax.Array:
        """Whether the batch after `step` others is one of `every` batches that gets a step."""
        del extra_args
        return (step + 1) % self.every == 0

    def _constraint(self) -> optax.GradientTransformation:
        """Changes updates so that the parameters fulfill a constraint of the method."""
        return optax.identity()


def scale(factor: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies steps by a schedule, whose sign stays."""
    return optax.scale_by_learning_rate(factor, flip_sign=False)


def _momentum(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """The trace v = momentum * v + g, or nothing where `momentum` is 0."""
    return optax.identity() if is_zero(momentum) else optax.trace(momentum, nesterov)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Polyak, 1964; Sutskever et al., 2013)."""

    learning_rate: float | optax.Schedule = field(
        default=0.01, kw_only=False
    )  # the peak of the schedule
    momentum: float = 0.0  # decay of the velocity: v = momentum * v + g, w -= rate * v
    nesterov: bool = False  # look-ahead: w -= rate * (momentum * v + g); needs momentum

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        return optax.chain(_momentum(self.momentum, self.nesterov), add_decay)


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton, 2012, lecture 6e), with Optax's defaults.

    As in PyTorch, momentum accumulates gradients before they are scaled by the learning rate;
    Optax's alias and Keras accumulate them after, which differs only while the rate changes.
    """

    decay: float = 0.9  # decay of the mean squared gradient
    eps: float = 1e-8  # added to the mean square, under the root
    centered: bool = False  # divide by the gradient's standard deviation (Graves, 2013) instead
    momentum: float = 0.0  # decay of the velocity
    nesterov: bool = False  # Nesterov's look-ahead; needs momentum

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        scale = optax.scale_by_stddev if self.centered else optax.scale_by_rms
        momentum = _momentum(self.momentum, self.nesterov)
        return optax.chain(scale(self.decay, self.eps), momentum, add_decay)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011), with Optax's defaults and PyTorch's learning rate."""

    learning_rate: float | optax.Schedule = field(
        default=0.01, kw_only=False
    )  # the peak of the schedule
    initial_accumulator: float = 0.1  # initial value of the sum of squared gradients, at least 0
    eps: float = 1e-7  # added to the sum, under the root

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = 0 <= self.initial_accumulator < math.inf
        check(self, "initial_accumulator", valid, "finite and at least 0")

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        return optax.chain(optax.scale_by_rss(self.initial_accumulator, self.eps), add_decay)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1), with the paper's defaults."""

    b1: float = 0.9  # decay of the mean gradient
    b2: float = 0.999  # decay of the mean squared gradient
    eps: float = 1e-8  # added to the root mean square
    nesterov: bool = False  # Nesterov's look-ahead: NAdam (Dozat, 2016)

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov)
        return optax.chain(adam, add_decay)


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), with Optax's defaults."""

    weight_decay: float = 1e-4  # decoupled decay: each step subtracts rate * this * weight
    b1: float = 0.9  # decay of the mean gradient
    b2: float = 0.999  # decay of the mean squared gradient
    eps: float = 1e-8  # added to the root mean square
    nesterov: bool = False  # Nesterov's look-ahead: NAdamW

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov)
        return optax.chain(adam, add_decay)


@dataclass(frozen=True, kw_only=True)
class Lamb(Optimizer):
    """LAMB for large batches (You et al., 2020, algorithm 2), with the paper's decay for BERT.

    As in the authors' code, parameters without weight decay have no layer-wise scaling either.
    """

    weight_decay: float = 0.01  # decoupled decay, inside the layer-wise scaling
    b1: float = 0.9  # decay of the mean gradient
    b2: float = 0.999  # decay of the mean squared gradient
    eps: float = 1e-6  # added to the root mean square

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.chain(adam, add_decay, optax.masked(optax.scale_by_trust_ratio(), decay_mask))


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion (Chen et al., 2023, algorithm 2), with Optax's defaults.

    The paper advises a learning rate 3 to 10 times smaller than AdamW's and a weight decay larger
    by as much.
    """

    learning_rate: float | optax.Schedule = field(
        default=1e-4, kw_only=False
    )  # the peak of the schedule
    weight_decay: float = 1e-3  # decoupled decay: each step subtracts rate * this * weight
    b1: float = 0.9  # weight of the momentum in the update, whose sign is taken
    b2: float = 0.99  # decay of the momentum

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""
        return optax.chain(optax.scale_by_lion(self.b1, self.b2), add_decay)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan, 2024) for the kernels of hidden layers, Adam for all other parameters.

    Muon orthogonalizes the momentum of a matrix. Its updates are scaled to the size of Adam's and
    decayed as in "Muon is scalable for LLM training" (Liu et al., 2025, equation 4), so that
    AdamW's learning rate and weight decay suit both.

    Muon takes each leaf named `kernel` of two or more dimensions. The last axis holds the outputs
    and the axes before it, a convolution's window included, are the inputs; in `query`, `key` and
    `value` layers of three axes the first holds the inputs, the others the outputs of all heads.
    (A kernel that `nn.scan` has stacked would be misread.) Adam takes biases, scales, embeddings
    (`embedding` of `nn.Embed`), other bare parameters, and each kernel below a module that
    `adam_names` names. Output layers should use Adam but cannot be detected: list a
    model's output layer there unless it is named `head` or `logits`.
    """

    weight_decay: float = 0.1  # decoupled decay: each step subtracts rate * this * weight
    beta: float = 0.95  # decay of Muon's momentum
    nesterov: bool = True  # Nesterov's look-ahead in Muon's momentum
    ns_steps: int = 5  # Newton-Schulz iterations, at least 1
    rms: float | None = 0.2  # RMS of Muon's updates; None: Jordan's scale, for a rate near 0.02
    b1: float = 0.9  # Adam's decay of the mean gradient
    b2: float = 0.999  # Adam's decay of the mean squared gradient
    eps: float = 1e-8  # added to Adam's root mean square and to Muon's norms
    adam_names: tuple[str, ...] = ("embed", "embedding", "head", "logits")
    """Names of modules (exact, such as Dense_2) whose kernels use Adam."""
    normalize: bool = False
    """Scale Muon's kernels to the norm sqrt(outputs) before each step, for layers that a
    normalization layer follows; their updates then need no `rms`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "ns_steps", self.ns_steps >= 1, "at least 1")
        check(
            self, "rms", self.rms is None or 0 < self.rms < math.inf, "finite and above 0, or None"
        )

    def direction(self, add_decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """As in `Optimizer.direction`."""

        def labels(params: PyTree) -> PyTree:
            return jax.tree.map(
                lambda _, found: "adam" if found is None else "muon", params, self._axes(params)
            )

        muon = optax.contrib.muon(
            -1.0,  # undoes Optax's negation: the learning rate comes after the decay, below
            ns_steps=self.ns_steps,
            beta=self.beta,
            eps=self.eps,
            nesterov=self.nesterov,
            consistent_rms=self.rms,
            muon_weight_dimension_numbers=self._axes,
        )
        # Optax's own Adam for the rest would be NAdam, since it is given the same `nesterov`.
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.chain(optax.partition({"muon": muon, "adam": adam}, labels), add_decay)

    def _axes(self, params: PyTree) -> PyTree:
        return matrix_axes(params, self.adam_names)

    def _is_due(self, step: Any, **extra_args: Any) -> jax.Array:
        """Whether the batch after `step` others is one of `every` batches that gets a step."""
        del extra_args
        return (step + 1) % self.every == 0

    def _constraint(self) -> optax.GradientTransformation:
        return normalize_weights(self._axes) if self.normalize else optax.identity()
