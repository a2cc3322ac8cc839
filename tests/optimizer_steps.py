"""Runs optimizer steps on given gradients or a given loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.optimizers import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    ReduceOnPlateau,
    Step,
)

SCHEDULES = (
    Constant(),
    Constant(warmup=0.5),
    Step(),
    Exponential(),
    Linear(),
    Cosine(warmup=0.1),
    OneCycle(),
    ReduceOnPlateau(),
)


def values(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network():
    """Parameters of every kind: kernels, biases and scales of one and two axes, an embedding."""
    return {
        "Dense_0": {"kernel": jnp.asarray(values(0, 6, 4)), "bias": jnp.asarray(values(1, 4))},
        "Conv_0": {"kernel": jnp.asarray(values(2, 3, 3, 2, 5))},
        "Heads_0": {"scale": jnp.asarray(values(3, 2, 3)), "bias": jnp.asarray(values(4, 2, 3))},
        "Embed_0": {"embedding": jnp.asarray(values(5, 7, 4))},
        "LayerNorm_0": {"scale": jnp.asarray(values(6, 4))},
        "temperature": jnp.asarray(values(7, 1)),
    }


def run(optimizer, params, gradients, losses=None):
    """All parameters after each of the given gradients, and the last optimizer state."""
    tx = optimizer.build(len(gradients))

    @jax.jit
    def step(params, state, gradient, value):
        updates, state = tx.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state, trajectory = tx.init(params), []
    for gradient, value in zip(gradients, losses or [0.0] * len(gradients), strict=True):
        params, state = step(params, state, gradient, jnp.float32(value))
        trajectory.append(params)
    return trajectory, state


def descend(optimizer, loss, params, steps):
    """The parameters after `steps` steps on the whole gradient of `loss`."""
    tx = optimizer.build(steps)

    def body(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    return jax.jit(lambda start: jax.lax.scan(body, start, length=steps)[0][0])(start)
