"""Small models in the format of transformers, and their files."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.models import BERT, GPT, ViT

TOKENS = np.random.default_rng(0).integers(1, 11, (3, 9)).astype(np.int32)
TOKENS[1, 6:] = TOKENS[2, 2:] = 0  # padding, where there is such
IMAGES = np.random.default_rng(1).normal(size=(3, 12, 12, 2)).astype(np.float32)
GPT_SIZES = {
    "vocab_size": 11,
    "max_position_embeddings": 12,
    "num_layers": 2,
    "num_heads": 2,
    "embed_dim": 8,
}
BERT_SIZES = {**GPT_SIZES, "mlp_dim": 12, "dropout_rate": 0.2}
OURS = {
    "gpt": GPT(**GPT_SIZES),
    "gpt, untied": GPT(
        **GPT_SIZES, tie_word_embeddings=False, mlp_dim=12, activation=nn.relu, epsilon=1e-3
    ),
    "bert": BERT(**BERT_SIZES),
    "bert, classes": BERT(**BERT_SIZES, num_classes=3, type_vocab_size=3, pad_token_id=1),
    "bert, vectors": BERT(**BERT_SIZES, num_classes=0, activation=nn.gelu),
    "vit": ViT(patch_size=3, num_layers=2, num_heads=2, embed_dim=8, num_classes=5, epsilon=1e-12),
}


def given_to(model):
    return jnp.asarray(IMAGES if isinstance(model, ViT) else TOKENS)


def made(model, given=None):
    """Parameters drawn wide: those that begin at 0 or 1 would hide a wrong place."""
    given = given_to(model) if given is None else given
    params = jax.eval_shape(model.init, jax.random.key(0), given)["params"]
    leaves, tree = jax.tree.flatten(params)
    generator = np.random.default_rng(2)
    return tree.unflatten([generator.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves])


def outputs(model, params):
    return jax.jit(model.apply)({"params": params}, given_to(model))


def leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): np.asarray(x) for p, x in paths}


def tensors_of(directory):
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def rewrite(directory, tensors, name="model.safetensors"):
    from safetensors.numpy import save_file

    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / name)


def settled(directory, **changes):
    """Changes entries of config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
