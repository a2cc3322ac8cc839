"""Masked autoencoding against its definition in NumPy; whom it does not see has no effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.layers import cut_patches, join_patches
from jdl.models import MLP, MaskedAutoencoder, ViT
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.pretrained import InitFrom
from jdl.state import TrainState
from jdl.tasks import LinearProbe, MaskedAutoencoding, with_row_keys

RNG = np.random.default_rng(0)
SIZES = {"patch_size": 2, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
MODEL = MaskedAutoencoder(**SIZES, decoder_layers=1, decoder_heads=2, decoder_dim=4)
IMAGES = RNG.normal(size=(40, 4, 6, 1)).astype(np.float32)


def test_patches_are_those_of_a_loop_and_join_again():
    patches = np.asarray(cut_patches(jnp.asarray(IMAGES), 2))
    expected = [IMAGES[:, y : y + 2, x : x + 2].reshape(40, -1) for y in (0, 2) for x in (0, 2, 4)]
    np.testing.assert_array_equal(patches, np.stack(expected, 1))
    np.testing.assert_array_equal(join_patches(jnp.asarray(patches), (4, 6, 1), 2), IMAGES)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_of_hidden_patches_which_the_model_does_not_see(normalize):
    task, key = MaskedAutoencoding(mask_ratio=0.5, normalize_patches=normalize), jax.random.key(0)
    batch = {"image": jnp.asarray(IMAGES[:5]), "mask": jnp.arange(5) < 4}
    batch = with_row_keys(batch, key)
    params = jax.jit(lambda batch: task.init(MODEL, key, batch)["params"])(batch)
    state = TrainState(step=jnp.array(0), key=key, params=params, collections={}, opt_state=())
    apply = jax.jit(lambda *arrays: MODEL.apply({"params": params}, *arrays))

    @jax.jit
    def everything(state, batch):
        order, sample = task._order(MODEL, batch), task.sample(MODEL, state, batch)
        return task.evaluate(MODEL, state, batch)["loss"], order, sample

    loss, order, sample = everything(state, batch)
    assert loss.count == 4 * 3
    visible, hidden = (np.asarray(x) for x in order)
    assert np.array_equal(np.sort(np.concatenate([visible, hidden], 1), 1), [range(6)] * 5)
    assert len({tuple(row) for row in visible}) > 1
    patches = np.asarray(cut_patches(batch["image"], 2))
    scale = np.sqrt(patches.var(-1, keepdims=True) + 1e-6)
    wanted = (patches - patches.mean(-1, keepdims=True)) / scale if normalize else patches
    found = apply(batch["image"], jnp.asarray(visible))
    errors = [((found[i, hidden[i]] - wanted[i, hidden[i]]) ** 2).mean() for i in range(4)]
    assert loss.compute() == pytest.approx(np.mean(errors), rel=1e-5)
    # The reconstruction keeps what is seen, and does not depend on what is hidden.
    sample = np.asarray(cut_patches(sample, 2))
    for i in range(5):
        np.testing.assert_array_equal(sample[i, visible[i]], patches[i, visible[i]])
    other = patches.copy()
    for i in range(5):
        other[i, hidden[i]] = 9.0
    images = join_patches(jnp.asarray(other), (4, 6, 1), 2)
    again = apply(images, jnp.asarray(visible))
    np.testing.assert_array_equal(again, found)


def test_a_vit_begins_with_the_encoder(tmp_path):
    label = np.arange(40) % 2
    data = Arrays({"train": {"image": IMAGES, "label": label}}, test_fraction=0.3)
    task = MaskedAutoencoding(probes=(LinearProbe(),))
    experiment = Experiment(
        MODEL, task=task, data=data, optimizer=Adam(1e-3), strategy=Single(), hooks=(), steps=2,
        batch_size=8,
    )  # fmt: skip
    run = jdl.train(experiment, tmp_path / "run")
    assert 0 <= run.result["metrics"]["test"]["linear_accuracy"] <= 1
    features = run.predict(IMAGES)
    assert features.shape == (40, 8)
    vit = ViT(**SIZES, num_classes=2, pool="mean")
    begin = InitFrom(run=str(tmp_path / "run"), skip=("logits",))
    changes = {"model": vit, "task": jdl.tasks.Classification(), "init_from": begin}
    other = jdl.train(dataclasses.replace(experiment, **changes, optimizer=Adam(0.0)))
    logits = features @ other.params["logits"]["kernel"] + other.params["logits"]["bias"]
    np.testing.assert_allclose(other.predict(IMAGES), jax.nn.softmax(logits), atol=1e-5)


def test_what_is_refused():
    with pytest.raises(UserError, match="mask_ratio is a share between 0 and 1, not 1"):
        MaskedAutoencoding(mask_ratio=1.0)
    task, key = MaskedAutoencoding(), jax.random.key(0)
    batch = {"image": jnp.asarray(IMAGES), "mask": jnp.ones(40, bool)}
    batch = with_row_keys(batch, key)
    with pytest.raises(UserError, match="needs a model with a field patch_size"):
        task.init(MLP(), key, batch)
    with pytest.raises(UserError, match=r"hides 6 of 6 patches"):
        MaskedAutoencoding(mask_ratio=0.95).init(MODEL, key, batch)
    with pytest.raises(UserError, match=r"add Scale\(\) to data.device_transforms"):
        task.init(MODEL, key, {**batch, "image": batch["image"].astype(jnp.uint8)})
