"""Compiles a tiny GPT's training step for 8 virtual devices under each strategy.

    python -m tests.collectives

prints as JSON the collectives of the compiled programs, and the bytes of all parameters, and of
those on one device under tensor parallelism.
"""

import json
import math
import os
import re
import sys
from unittest import mock

if __name__ == "__main__":
    from tests.flags import devices

    os.environ["XLA_FLAGS"] = devices(8)

import jax
import numpy as np
from jax.sharding import NamedSharding

from jdl.models import GPT
from jdl.optimizers import Adam
from jdl.parallel import DataParallel, FullySharded, Pmap, TensorParallel
from jdl.parallel.base import BATCH
from jdl.step import Program
from jdl.tasks import LanguageModeling

ROWS, TIME, VOCAB, WIDTH, LAYERS = 16, 8, 64, 32, 2
MODEL = GPT(
    vocab_size=VOCAB,
    max_position_embeddings=TIME,
    num_layers=LAYERS,
    num_heads=4,
    embed_dim=WIDTH,
)
STRATEGIES = {
    "data": DataParallel(),
    "pmap": Pmap(),
    "sharded": FullySharded(min_elements=1),
    "tensor": TensorParallel(tensor=2),
}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"


def collectives(text):
    """Kind and bytes of the results of every collective of an HLO text."""
    found = []
    for types, kind in re.findall(rf" = (.*?) ({KINDS})(?:-start)?\(", text):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", types)
        sizes = [
            (BYTES[dtype], *map(int, dims.split(",") if dims else ())) for dtype, dims in shapes
        ]
        found.append((kind, sum(map(math.prod, sizes))))
    return found


def lowered(strategy):
    """The HLO text of the step that a strategy compiles, and the state's shapes and shardings."""
    texts = []

    def spy(compile_):
        def compiled(function, **options):
            def call(*args):
                texts.append(compile_(function, **options).lower(*args).compile().as_text())
                return None, None

            return call

        return compiled

    program = Program(MODEL, LanguageModeling(), Adam(0.01).build(9))
    batch = {"tokens": np.ones((ROWS, TIME + 1), np.int32), "mask": np.ones(ROWS, bool)}
    with mock.patch.multiple(jax, jit=spy(jax.jit), pmap=spy(jax.pmap)):
        steps = strategy.compile(program, {}, batch)
    state = steps.abstract_state
    if isinstance(strategy, Pmap):  # an axis of devices
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype), state)
        batch = {k: jax.ShapeDtypeStruct((8, len(x) // 8, *x.shape[1:]), x.dtype)
                 for k, x in batch.items()}  # fmt: skip
    else:
        rows = NamedSharding(strategy.mesh(), BATCH)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)
    steps.update(state, batch)
    return texts[0], steps.abstract_state


def main():
    found = {}
    for name, strategy in STRATEGIES.items():
        text, state = lowered(strategy)
        found[name] = collectives(text)
    params = jax.tree.leaves(state.params)
    local = [math.prod(x.sharding.shard_shape(x.shape)) for x in params]
    found |= {"params": 4 * sum(x.size for x in params), "tensor params": 4 * sum(local)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
