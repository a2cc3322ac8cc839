"""Networks with fixed weights, whose attributions Captum computes on their PyTorch twins."""

import numpy as np

CNN = {
    "Conv_0.bias": (3,), "Conv_0.kernel": (3, 3, 1, 3), "Conv_1.bias": (4,),
    "Conv_1.kernel": (3, 3, 3, 4), "Dense_0.bias": (5,), "Dense_0.kernel": (16, 5),
    "logits.bias": (3,), "logits.kernel": (5, 3),
}  # fmt: skip
LSTM = {
    "Embed_0.embedding": (11, 3), "LSTM_0.bias": (16,), "LSTM_0.kernel": (3, 16),
    "LSTM_0.recurrent": (4, 16), "logits.bias": (2,), "logits.kernel": (4, 2),
}  # fmt: skip
BLOCK = {
    "attention.output.bias": (8,), "attention.output.kernel": (8, 8), "attention.qkv.bias": (24,),
    "attention.qkv.kernel": (8, 24), "feed_forward.inner.bias": (12,),
    "feed_forward.inner.kernel": (8, 12), "feed_forward.outer.bias": (8,),
    "feed_forward.outer.kernel": (12, 8), "norm1.bias": (8,), "norm1.scale": (8,),
    "norm2.bias": (8,), "norm2.scale": (8,),
}  # fmt: skip
VIT = {
    **{f"block_0.{name}": shape for name, shape in BLOCK.items()},
    "logits.bias": (3,), "logits.kernel": (8, 3), "norm.bias": (8,), "norm.scale": (8,),
    "patches.bias": (8,), "patches.kernel": (4, 8), "positions": (4, 8),
}  # fmt: skip

ROWS = 3
TIME = 5


def weights(shapes):
    """Returns arrays by path, the same wherever they are made."""
    rng = np.random.RandomState(0)

    def shift(name):  # biases keep units alive
        return 1.0 if name.endswith("scale") else 0.5 * name.endswith("bias")

    return {
        name: (rng.normal(0, 0.5, shape) + shift(name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def images(side):
    """Returns images (rows, side, side, 1)."""
    return np.random.RandomState(1).rand(ROWS, side, side, 1).astype(np.float32)


def baselines():
    """Returns one image in which no pixels of a window are alike, (1, 8, 8, 1)."""
    return np.random.RandomState(3).rand(1, 8, 8, 1).astype(np.float32)


def tokens():
    """Returns texts (rows, time)."""
    return np.random.RandomState(2).randint(1, 11, (ROWS, TIME)).astype(np.int32)


def tree(arrays):
    """Returns arrays by path as nested dicts."""
    found = {}
    for name, array in arrays.items():
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = array
    return found
