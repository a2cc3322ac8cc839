"""Distillation: a classifier learns from the outputs and features of a larger one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.classification import Classification
from jdl.tasks.forward import forward, intermediates
from jdl.tasks.terms import SUPERVISED, Terms
from jdl.tasks.untrained import Frozen
from jdl.typing import Batch, Key, PyTree

SOFT, FEATURES = "distillation", "features"
"""Names of the terms of the loss beside `supervised`."""


class _Outputs(NamedTuple):
    """The student's outputs in training, with those of the modules in `features`."""

    logits: jax.Array
    features: list[jax.Array]


@dataclass(frozen=True, kw_only=True)
class Distillation(Classification):
    """Classification by a student that also learns from a frozen teacher (Hinton et al., 2015).

    The term `distillation` is the Kullback-Leibler divergence of the student's class probabilities
    from the teacher's, both at `temperature` T, times T^2, so that its gradient keeps its size. The
    term `features` compares attention maps (Zagoruyko and Komodakis, 2017, equation 2): the sum of
    squares over the channels of a module's outputs (batch, ..., channels), scaled to norm 1 for
    each row. It is the squared distance of the two maps, averaged over pairs of modules: these may
    differ in channels, but not in height, width or length. Both terms are of all rows, also of
    those that are not `labeled`, and of training only.

    The teacher sees the student's inputs, in evaluation mode. It is a collection of the state, of
    which predictions and exports hold nothing.
    """

    teacher: Frozen  # the trained network, with the directory of its run
    temperature: float = 4.0  # that divides both networks' logits
    features: tuple[tuple[str, str], ...] = ()
    """Pairs of modules, of the student and of the teacher, whose outputs are compared."""
    loss_terms: Terms = ((SUPERVISED, 0.1), (SOFT, 0.9))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise UserError(f"task.temperature must be above 0, not {self.temperature}")
        if any(isinstance(pair, str) or len(pair) != 2 for pair in self.features):
            raise UserError(
                f"task.features are pairs of modules, of student and teacher, such as (('Conv_0', "
                f"'Conv_1'),), not {self.features!r:.60}"
            )
        if bool(self.features) != (FEATURES in dict(self.loss_terms)):
            change = f"add ({FEATURES!r}, 1.0) to task.loss_terms"
            if not self.features:
                change = f"name pairs of modules in task.features, or drop {FEATURES!r}"
            raise UserError(f"task.features and task.loss_terms do not fit together: {change}")

    def loss_and_metrics(self, outputs: Any, batch: Batch) -> dict[str, Mean]:
        """Computes `supervised`, the loss of `Classification`, with `nll` and `accuracy`."""
        found = super().loss_and_metrics(_logits(outputs), batch)
        return {SUPERVISED if name == "loss" else name: each for name, each in found.items()}

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """See `Classification.to_prediction`."""
        return super().to_prediction(_logits(outputs), batch)

    def further_terms(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        outputs: Any,
        key: Key | None,
    ) -> dict[str, Mean]:
        """Computes `distillation`, and `features` where there are any."""
        inputs, named = self.model_inputs(model, batch)
        modules = [theirs for _, theirs in self.features]
        taught, maps = self.teacher.with_intermediates(state, *inputs, modules=modules, **named)
        logits = _logits(outputs)
        if jnp.shape(taught) != logits.shape:
            raise UserError(
                f"the teacher's outputs have shape {jnp.shape(taught)}, and the student's "
                f"{logits.shape}: give both the same classes"
            )
        terms = {SOFT: Mean.of(self._divergence(taught, logits), batch["mask"])}
        if self.features:
            distances = map(_distance, self.features, outputs.features, maps)
            mean = sum(distances, jnp.zeros(())) / len(self.features)
            terms[FEATURES] = Mean.of(mean, batch["mask"])
        return terms

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires the weights of the teacher."""
        super().validate_batch(batch, outputs, where)
        if self.teacher.run is None:
            raise UserError(
                "task.teacher has random weights, from which nothing can be learned: set "
                "task.teacher.run to the directory of its run"
            )

    def _divergence(self, taught: jax.Array, logits: jax.Array) -> jax.Array:
        """Returns T^2 KL(teacher || student) of each row, (batch,) float32."""
        theirs, own = (
            jax.nn.log_softmax(x.astype(jnp.float32) / self.temperature) for x in (taught, logits)
        )
        return self.temperature**2 * (jnp.exp(theirs) * (theirs - own)).sum(-1)

    def _apply(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[Any, dict[str, PyTree]]:
        """See `Task._apply`; in training the outputs of `features` are returned, too."""
        if not (train and self.features):
            return super()._apply(model, params, state, batch, train=train, key=key)
        inputs, named = self.model_inputs(model, batch)
        modules = [own for own, _ in self.features]
        outputs, collections = forward(
            model, params, state.collections, *inputs, train=True, key=key, capture=modules, **named
        )
        found = intermediates(collections, modules, params, "the model")
        del collections["intermediates"]
        return _Outputs(outputs, found), collections


def _logits(outputs: Any) -> Any:
    return outputs.logits if isinstance(outputs, _Outputs) else outputs


def _distance(pair: tuple[str, str], own: jax.Array, theirs: jax.Array) -> jax.Array:
    """Returns the squared distance of two attention maps of each row, (batch,).

    Raises:
      UserError: the maps are of different shapes, or a module's outputs are no maps.
    """
    for name, x in zip(pair, (own, theirs), strict=True):
        if jnp.ndim(x) < 3:
            raise UserError(
                f"task.features: the outputs of {name} have shape {jnp.shape(x)}, and no map over "
                f"positions: name a module with outputs (batch, ..., channels)"
            )
    if own.shape[1:-1] != theirs.shape[1:-1]:
        raise UserError(
            f"task.features: {pair[0]} of the student gives maps of shape {own.shape[1:-1]}, and "
            f"{pair[1]} of the teacher {theirs.shape[1:-1]}: name modules of the same resolution"
        )
    first, second = (_attention_map(x) for x in (own, theirs))
    return jnp.square(first - second).sum(-1)


def _attention_map(x: jax.Array) -> jax.Array:
    """Returns the sum of squares over channels, scaled to norm 1, (batch, positions) float32."""
    found = jnp.square(x.astype(jnp.float32)).sum(-1).reshape(len(x), -1)
    # A map of zeros stays one, with a gradient of 0.
    norm = jnp.sqrt(jnp.square(found).sum(-1, keepdims=True) + 1e-12)
    return found / norm
