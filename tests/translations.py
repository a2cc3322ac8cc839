"""Small translation models, pairs of sentences, and an experiment on these."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jdl
from jdl.data import Arrays, Pairs
from jdl.data.tokenizers import BPE
from jdl.models import EncoderDecoder, LSTMEncoderDecoder
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.tasks import Translation

TRANSFORMER = EncoderDecoder(
    vocab_size=13, max_position_embeddings=40, num_layers=2, num_heads=2, embed_dim=16
)
LSTM = LSTMEncoderDecoder(vocab_size=13, num_layers=2, hidden_size=16)
MODELS = {"transformer": TRANSFORMER, "lstm": LSTM, "scanned": TRANSFORMER.clone(scan=True)}


def tokens(rows=2, time=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(4, 13, (rows, time)), jnp.int32)


def made(model):
    """Parameters drawn wide, so that nothing is hidden by small initial kernels."""
    init = functools.partial(model.init, jax.random.key(0))
    shapes = jax.eval_shape(init, tokens(1, 2), tokens(1, 2))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.4, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


TEXTS = [
    ("A dog runs.", "Ein Hund läuft über die Straße."),
    ("Two men sit on a bench.", "Zwei Männer sitzen auf einer Bank."),
    ("A man sits.", "Ein Mann sitzt auf einer Bank, die grün ist."),
    ("Two dogs run.", "Zwei Hunde laufen am Strand entlang."),
]


def pairs():
    sides = {name: np.array([t[i] for t in TEXTS], object) for i, name in enumerate(("en", "de"))}
    return Pairs(
        Arrays({"train": sides, "test": sides}, validation_fraction=0.0),
        encoding=BPE(vocab_size=320), max_source_length=24, max_target_length=48,
    )  # fmt: skip


def experiment(model, **changes):
    settings = {
        "task": Translation(), "data": pairs(), "optimizer": Adam(1e-2), "steps": 150,
        "batch_size": 4, "hooks": (), "strategy": Single(),
    }  # fmt: skip
    return jdl.Experiment(model=model, **settings | changes)
