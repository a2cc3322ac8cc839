"""Flax: linen modules, a jitted step and a `TrainState`, as in Flax's examples."""

from typing import Any

import flax

from benchmarks.peers.flax import gan, training
from benchmarks.peers.flax.gan import Adversarial
from benchmarks.peers.flax.training import Bare, Loop
from benchmarks.trainer import Case, Trainer
from jdl.errors import UserError

__all__ = ["VERSION", "build", "loss_function"]

VERSION = flax.__version__


def build(case: Case, variant: str) -> Trainer:
    """The trainer of a workload.

    Raises:
      UserError: for a variant other than `default`.
    """
    if variant != "default":
        raise UserError(f"flax has the variant 'default' only, not {variant!r}")
    if case.name == "gan":
        return Adversarial(case)
    return (Loop if case.loop else Bare)(case)


def loss_function(case: Case) -> tuple[Any, ...]:
    """See `benchmarks.peers.flax.training.loss_function`."""
    return (gan if case.name == "gan" else training).loss_function(case)
