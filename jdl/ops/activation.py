"""Activations."""

import jax

Array = jax.Array


def gelu(x: Array) -> Array:
    """x times the normal distribution function, by its tanh form (Hendrycks and Gimpel, 2016)."""
    return jax.nn.gelu(x, approximate=True)
