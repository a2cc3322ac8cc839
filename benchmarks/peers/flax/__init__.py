"""Flax: linen modules, a jitted step and a `TrainState`, as in Flax's examples."""

import flax

from benchmarks.peers.flax.training import Bare, Loop, loss_function
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
    return (Loop if case.loop else Bare)(case)
