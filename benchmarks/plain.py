"""Reference definitions of the operations in `jdl.ops`, in plain JAX and Flax."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jdl import ops
from jdl.data import augment

Array = jax.Array


def attention(
    query: Array, key: Array, value: Array, *, causal: bool = False, **rest: Any
) -> Array:
    """Materializes scores and softmax."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, **rest)


def gru(projected: Array, h: Array, kernel: Array, bias: Array) -> Array:
    """A scan."""

    def step(h: Array, z: Array) -> tuple[Array, Array]:
        h = ops.gru_step(z, h, kernel, bias)
        return h, h

    return lax.scan(step, h, projected)[1]


def linear_cross_entropy(
    hidden: Array, kernel: Array, targets: Array, weights: Array | None = None
) -> Array:
    """Materializes all logits."""
    weights = jnp.ones(targets.shape) if weights is None else weights
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype).T, preferred_element_type=jnp.float32)
    return (weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets)).sum()


def lstm(projected: Array, h: Array, c: Array, kernel: Array) -> tuple[Array, Array]:
    """A scan."""

    def step(carry: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], Array]:
        carry = ops.lstm_step(z, *carry, kernel)
        return carry, carry[0]

    (_, last), hidden = lax.scan(step, (h, c), projected)
    return hidden, last


def resample(image: Array, matrix: Array, *rest: Any) -> Array:
    """Nothing: the image as it is."""
    del matrix, rest
    return image.astype(jnp.float32)


DEFINITIONS: dict[str, Any] = {
    "attention": attention,
    "conv_general_dilated": lax.conv_general_dilated,
    "dot_general": lax.dot_general,
    "gru": gru,
    "linear_cross_entropy": linear_cross_entropy,
    "lstm": lstm,
    "max_pool": nn.max_pool,
    "resample": resample,
}


def use(operation: str) -> None:
    """Replaces jdl's operation by the plain definition, for the rest of this process."""
    owner = augment if operation == "resample" else ops
    setattr(owner, operation, DEFINITIONS[operation])
