"""Writes, reads, damages and re-signs checkpoints of a small state."""

import contextlib
import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.checkpoint import MANIFEST, CheckpointStore
from jdl.files import CheckpointMetadata
from jdl.state import TrainState


class Moments(NamedTuple):
    count: Any
    mean: Any
    frozen: Any


def make_state(step, size=16):
    """A state with every kind of leaf and container that occurs, its numbers made from the step."""
    values = np.random.default_rng(step)
    kernel = values.normal(size=(size, size)).astype(np.float32)
    kernel[0, :3] = [np.nan, np.inf, -0.0]
    params = {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.arange(3, dtype=jnp.bfloat16)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        key=jax.random.key(step),
        params=params,
        collections={"batch_stats": {"mean": jnp.float32(values.normal()), "n": jnp.int8([-1, 2])}},
        opt_state=(
            Moments(jnp.uint32(step), jax.tree.map(jnp.negative, params), jnp.array([True, False])),
            optax.EmptyState(),
            (),
            {"scale": jnp.float16([0.1, step])},
        ),
    )


def like(state):
    sharding = state.step.sharding
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def content(state):
    """Path, dtype, shape and bytes of every leaf."""
    numbers = state.replace(key=jax.random.key_data(state.key))
    return [
        (jax.tree_util.keystr(path), leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(numbers)
    ]


LIKE = like(make_state(0))


def metadata(step):
    return CheckpointMetadata(step=step, hooks={"1 A": None})


def save(directory, *steps, keep=(), size=16):
    store = CheckpointStore(directory)
    for step in steps:
        store.save(make_state(step, size), metadata(step), keep)
    store.close()


def restore(directory, step):
    with contextlib.closing(CheckpointStore(directory)) as store:
        return store.restore(step, LIKE)


def newest(directory, target=LIKE):
    """The step restored, its state and the messages."""
    messages = []
    with contextlib.closing(CheckpointStore(directory, messages.append)) as store:
        found = store.restore_latest(target)
    state, meta = found or (None, None)
    return meta and meta.step, state, "\n".join(messages)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def sign(checkpoint):
    """Updates the manifest to match the files, as an attacker would."""
    entries = {}
    for path in files(checkpoint):
        if path.name != MANIFEST:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"size": path.stat().st_size, "sha256": digest}
            entries[str(path.relative_to(checkpoint))] = entry
    sign_entries(checkpoint, entries)


def sign_entries(checkpoint, entries):
    body = json.dumps(entries, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(f'{{"sha256": "{digest}", "files": {body}}}')
