"""Models whose tokens depend strongly on the context, or on the last token alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.decoding import Sampling
from jdl.models import GPT

GREEDY = Sampling(temperature=0.0)
CONTEXT = 16


def gpt(**options):
    return GPT(
        **{
            "vocab_size": 11,
            "max_position_embeddings": CONTEXT,
            "num_layers": 2,
            "num_heads": 2,
            "embed_dim": 16,
        }
        | options
    )


def random_params(model, *inputs):
    """Random parameters of a wide range, so that outputs depend much on the context."""
    inputs = inputs or (jnp.zeros((1, 4), jnp.int32),)
    init = functools.partial(model.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, *inputs)["params"])
    generator = np.random.default_rng(0)
    wide = [generator.normal(size=leaf.shape, scale=0.5).astype(np.float32) for leaf in leaves]
    return jax.tree.map(jnp.asarray, tree.unflatten(wide))


def diversified(params):
    """Rescales a transformer's parameters so that its tokens vary."""
    factors = {"kernel": 3.0, "bias": 0.0, "embedding": 0.3}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * factors.get(path[-1].key, 1.0), params
    )


class TableModel(nn.Module):
    """Logits by the last token alone, from a table."""

    table: tuple[tuple[float, ...], ...]

    @nn.compact
    def __call__(self, tokens, positions=None, decode=False):
        if decode:
            self.put_variable("cache", "rows", jnp.zeros(tokens.shape[0]))
        return jnp.log(jnp.asarray(self.table))[tokens]
