"""Small experiments for tests of runs, and readers of run directories."""

import json
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import jdl
from jdl.data import Arrays
from jdl.metrics import Mean
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.tasks import Classification


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x)


@dataclass(frozen=True, kw_only=True)
class Scored(Classification):
    """Classification with a second score that is known beforehand: a number for every step."""

    scores: tuple[float, ...] = ()

    def higher_is_better(self, metric):
        return False if metric == "score" else super().higher_is_better(metric)

    def evaluate(self, model, state, batch):
        known = super().evaluate(model, state, batch)
        if not self.scores:
            return known
        score = jnp.asarray(self.scores, jnp.float32)[state.step]
        return {**known, "score": Mean.of(score + jnp.zeros(len(batch["mask"])), batch["mask"])}


def make_split(size, seed):
    x = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
    return {"image": x, "label": np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5]).astype(np.int32)}


ARRAYS = {"train": make_split(40, 0), "validation": make_split(13, 1), "test": make_split(11, 2)}


def make_experiment(*hooks, **changes):
    settings: dict[str, Any] = {
        "model": Linear(),
        "task": Scored(),
        "data": Arrays(ARRAYS),
        "optimizer": SGD(0.1),
        "strategy": Single(),
        "hooks": hooks,
        "steps": 6,
        "batch_size": 8,
        **changes,
    }
    return jdl.Experiment(**settings)


def read_rows(workdir, split=None):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if split in (None, row["split"])]
