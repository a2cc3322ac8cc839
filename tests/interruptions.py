"""A small experiment, and a hook that interrupts its run."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from jdl import Experiment, Runtime
from jdl.data import Arrays, Scale
from jdl.hooks import Callback, Checkpoint, Evaluate, Hook
from jdl.optimizers import SGD
from jdl.parallel import Single
from tests.runs import Scored


class Net(nn.Module):
    """Dropout and, where asked for, batch statistics; random numbers would be slow to compile."""

    normed: bool = False
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if self.normed:
            x = nn.Dense(4, kernel_init=nn.initializers.constant(0.1))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x)


class Killed(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class InterruptAt(Hook):
    """Ends the run at a step, by an exception or a signal."""

    at: int = 0
    how: Any = "raise"
    due: bool = False

    def build(self, run):
        return _InterruptAt(self)


class _InterruptAt(Callback):
    def __init__(self, config):
        self._config = config

    def due(self, step):
        return self._config.due and step == self._config.at

    def __call__(self, event):
        if event.step == self._config.at:
            if self._config.how == "raise":
                raise Killed
            os.kill(os.getpid(), self._config.how)


def make_arrays(seed=0):
    values = np.random.default_rng(seed)
    images = values.integers(0, 17, (44, 4, 4, 1)).astype(np.uint8)
    return {"image": images, "label": (images.sum((1, 2, 3)) % 3).astype(np.int32)}


def make_experiment(**changes):
    """14 batches of 8 out of 32 examples, scored every 3 and saved every 4 steps."""
    data = Arrays({"train": make_arrays()}, device_transforms=(Scale(divisor=16.0),))
    hooks = changes.pop("hooks", (Evaluate(every=3), Checkpoint(every=4)))
    settings: dict[str, Any] = {
        "model": Net(),
        "task": Scored(),
        "data": dataclasses.replace(data, **changes.pop("data", {})),
        "optimizer": SGD(0.1, momentum=0.9),
        "strategy": Single(),
        "hooks": (InterruptAt(), *hooks, InterruptAt()),
        "steps": 14,
        "batch_size": 8,
        "runtime": Runtime(log_every=5),
        **changes,
    }
    return Experiment(**settings)


def interrupt_at(experiment, at, how: Any = "raise", first=False, due=False):
    """The same experiment, interrupted at a step by a hook before or after the others."""
    end, rest = InterruptAt(at=at, how=how, due=due), experiment.hooks
    hooks = (end, *rest[1:]) if first else (*rest[:-1], end)
    return dataclasses.replace(experiment, hooks=hooks)
