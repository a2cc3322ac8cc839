"""The collectives of compiled steps are those of the textbook, in kind, number and bytes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.collectives import LAYERS, ROWS, TIME, VOCAB, WIDTH

SCALARS = 2 * 4  # the loss and the number of its tokens
EMBEDDING = 4 * VOCAB * WIDTH  # has two gradients, of the lookup and of the logits


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.collectives"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_data_parallelism_reduces_all_gradients_at_once(found):
    assert found["pmap"] == [["all-reduce", found["params"] + SCALARS]]
    assert found["data"] == [["all-reduce", found["params"] + EMBEDDING + SCALARS]]


def test_fully_sharded_parameters_are_gathered_and_their_gradients_reduced(found):
    kinds = Counter(kind for kind, _ in found["sharded"])
    assert kinds.keys() == {"all-gather", "all-reduce"}
    # For the forward pass, and some once more for the backward pass.
    gathered = sum(size for kind, size in found["sharded"] if kind == "all-gather")
    assert found["params"] <= gathered <= 2 * found["params"]
    # Each device then slices its shard, of which XLA makes a reduce-scatter, but not on CPUs.
    gradients, flags = (size for kind, size in found["sharded"] if kind == "all-reduce")
    assert gradients == found["params"] + EMBEDDING + SCALARS
    assert flags < 100, "whether each gradient is finite"


def test_tensor_parallelism_reduces_activations_twice_a_block_and_direction(found):
    kinds = {kind for kind, _ in found["tensor"]}
    assert kinds == {"all-reduce"}
    sizes = Counter(size for _, size in found["tensor"])
    tokens = ROWS // 4 * TIME  # of each of four groups of two devices
    # Attention and feed-forward network, forward and backward; the lookup; the logits' gradient.
    assert sizes.pop(4 * tokens * WIDTH) == 4 * LAYERS + 2
    # The softmax over a sharded vocabulary: its maximum; its sum, and the target's logit.
    assert sizes.pop(4 * tokens) == 1
    assert sizes.pop(8 * tokens) == 1
    # All gradients over the groups.
    assert sizes.pop(found["tensor params"] + EMBEDDING // 2 + SCALARS) == 1
    (flags,) = sizes
    assert flags < 100, "whether each gradient is finite"
