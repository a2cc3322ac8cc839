"""Trains tiny transformers for a few steps under each strategy, on a given number of devices.

    python -m tests.tensor_steps DEVICES FILE

writes to FILE (.npz) the losses and the last parameters of every case, by name.
"""

import os
import sys
from dataclasses import dataclass
from unittest import mock

if __name__ == "__main__":
    from tests.flags import devices

    os.environ["XLA_FLAGS"] = devices(int(sys.argv[1]))

import flax.linen as nn
import jax
import numpy as np

from jdl.metrics import Mean
from jdl.models import BERT, GPT, EncoderDecoder
from jdl.ops import cross_entropy
from jdl.optimizers import SGD
from jdl.parallel import DataParallel, FullySharded, Single, TensorParallel
from jdl.paths import path_name
from jdl.step import Program
from jdl.tasks import Classification, LanguageModeling, Task, forward

ROWS, TIME, WORDS, STEPS = 8, 6, 12, 3
SIZES = {"vocab_size": WORDS, "max_position_embeddings": TIME, "embed_dim": 16}


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Cross-entropies of one sequence given another."""

    inputs: str = "tokens"

    def init(self, model, key, batch):
        return dict(model.init(key, batch["tokens"], batch["tokens"]))

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        tokens, weights = batch["tokens"], 1.0 * (batch["tokens"] > 2) * batch["mask"][:, None]
        total, collections = forward(
            model, params, state.collections, tokens[:, ::-1], tokens, tokens, weights,
            train=train, key=key,
        )  # fmt: skip
        return {"loss": Mean(total, weights.sum())}, collections


CASES = {
    "gpt": (
        GPT(
            **SIZES, num_layers=1, num_heads=4, num_kv_heads=2, gated=True, activation=nn.silu,
            position_embedding="rotary", norm="rms",
        ),
        LanguageModeling(),
    ),
    "bert": (
        BERT(**SIZES, num_layers=1, num_heads=2, num_classes=3, dropout_rate=0.0),
        Classification(inputs="tokens"),
    ),
    "encoder-decoder": (
        EncoderDecoder(**SIZES, num_layers=1, num_heads=2, dropout_rate=0.0),
        Translation(),
    ),
}  # fmt: skip
"""Models that a strategy is to train as one device does, each with its task."""


def program(case):
    model, task = CASES[case]
    return Program(model, task, SGD(0.1, momentum=0.9).build(STEPS))


def batch(case, seed):
    rng = np.random.default_rng(seed)
    longer = int(case == "gpt")  # whose targets are in the window
    tokens = rng.integers(1, WORDS, (ROWS, TIME + longer), np.int32)
    tokens[: seed + 1, -3:] = -longer  # padding
    mask = np.arange(ROWS) < ROWS - seed
    return {"tokens": tokens, "label": rng.integers(0, 3, ROWS, np.int32), "mask": mask}


def begun(steps, compute):
    """A state initialized on the host and sharded by the strategy."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.float32(rng.normal(0.3, 0.3, x.shape)), steps.abstract_state.params
    )  # no zeros: a mistake in any leaf shows
    zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), steps.abstract_state.replace(key=None)
    )
    opt_state = jax.tree.map(np.asarray, compute.optimizer.init(params))
    state = zeros.replace(params=params, key=jax.random.key(3), opt_state=opt_state)
    return jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), state, steps.abstract_state
    )


@mock.patch.dict(cross_entropy.LOGITS, cpu=4 * WORDS)  # so that each device forms chunks
def descend(case, strategy):
    """Losses by step and the last parameters by path, of a case under a strategy."""
    compute = program(case)
    steps = strategy.compile(compute, {}, batch(case, 0))
    state, losses = begun(steps, compute), []
    for seed in range(STEPS):
        state, packed = steps.update(state, steps.put(batch(case, seed)))
        (metrics,) = packed.unpack()
        losses.append(metrics["loss"].compute())
    leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
    return {"losses": np.array(losses)} | {path_name(p): np.asarray(x) for p, x in leaves}


STRATEGIES = {
    "single": Single(),
    "tensor": TensorParallel(),
    "data": DataParallel(),
    "sharded": FullySharded(min_elements=1),
    "tensor and fsdp": TensorParallel(fsdp=2, min_elements=1),
}
"""Each of the first case; of the others the first two, since compiling takes long."""


def main(file):
    found = {}
    for case in CASES:
        for name in list(STRATEGIES)[: 5 if case == "gpt" else 2]:
            for leaf, value in descend(case, STRATEGIES[name]).items():
                found[f"{case}/{name}/{leaf}"] = value
    found["devices"] = np.array(jax.device_count())
    np.savez(file, **found)


if __name__ == "__main__":
    main(sys.argv[2])
