"""Transforms of sounds: of one length, features, masks, gain, noise, reverberation, speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.audio import MelSpectrogram, time_stretch
from jdl.data import (
    AddNoise,
    AudioFeatures,
    FixLength,
    RandomGain,
    Reverberate,
    SpecAugment,
    TimeStretch,
)
from jdl.errors import UserError
from tests.audio.librosa_values import sound

KEYS = jax.random.split(jax.random.key(0), 2)
LENGTHS = (500, 800)


@pytest.fixture(scope="module")
def batch():
    """Two sounds of different lengths, padded to 1000 samples."""
    mask = np.arange(1000) < np.array(LENGTHS)[:, None]
    x = np.where(mask, np.stack([sound(1000), sound(1001)[1:]]), 0)
    return {"audio": jnp.asarray(x), "audio_mask": jnp.asarray(mask), "mask": jnp.ones(2, bool)}


def test_fix_length_pads_and_keeps_the_loudest_part():
    found = FixLength(5)({"audio": np.array([1, 2, 3], np.int16), "label": 1})
    assert found["audio"].tolist() == [1, 2, 3, 0, 0]
    assert found["audio"].dtype == np.int16
    assert found["audio_mask"].tolist() == [True] * 3 + [False] * 2
    assert found["label"] == 1
    found = FixLength(2)({"audio": np.array([1, 300, -300, 1], np.int16)})
    assert found["audio"].tolist() == [300, -300]
    assert found["audio_mask"].all()


@pytest.mark.parametrize("fields", [{}, {"normalize": False}, {"kind": "mfcc"}])
def test_features_do_not_depend_on_padding(batch, fields):
    form = MelSpectrogram(n_mels=20)
    features = AudioFeatures(spectrogram=form, num_coefficients=5, **fields)
    found = features(batch, None)
    for row, length in enumerate(LENGTHS):
        alone = features({"audio": batch["audio"][row : row + 1, :length]}, None)["audio"][0]
        assert len(alone) == form.frames(length)
        np.testing.assert_allclose(found["audio"][row, : len(alone)], alone, atol=2e-4)
        assert not found["audio"][row, len(alone) :].any()
        assert found["audio_mask"][row].sum() == len(alone)


def test_features_of_integers_and_of_any_gain(batch):
    integers = (batch["audio"] * 32768).round().astype(jnp.int16)
    features = AudioFeatures(spectrogram=MelSpectrogram(n_mels=20), channel_axis=True)
    plain = features(batch, None)["audio"]
    assert plain.shape == (2, 13, 20, 1)
    other = features({**batch, "audio": integers}, None)["audio"]
    np.testing.assert_allclose(other, plain, atol=0.1)
    louder = features({**batch, "audio": 2 * batch["audio"]}, None)["audio"]
    np.testing.assert_allclose(louder, plain, atol=1e-4)
    silent = features({"audio": jnp.zeros((1, 400))}, None)["audio"]
    assert np.abs(silent).max() < 0.01
    with pytest.raises(UserError, match=r"shape \(2, 1000, 1\) and dtype float32, where sounds"):
        features({"audio": batch["audio"][..., None]}, None)


def test_spec_augment_masks_bands_and_frames_within_the_sound():
    x = jnp.ones((2, 50, 20))
    mask = jnp.arange(50) < jnp.array([[20], [50]])
    augment = SpecAugment(freq_masks=1, freq_mask_size=6, time_masks=1, time_mask_size=10)
    assert augment({"audio": x}, None)["audio"] is x
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), 2)
        found = np.asarray(augment({"audio": x, "audio_mask": mask}, keys)["audio"])
        for row, most in enumerate((4, 10)):
            frames, bands = (found[row] == 0).all(1), (found[row] == 0).all(0)
            assert frames.sum() <= most
            assert bands.sum() <= 6
            np.testing.assert_array_equal(found[row] == 0, frames[:, None] | bands)
            assert not frames[int(mask[row].sum()) :].any()


def test_gain_and_noise_are_drawn_within_their_ranges(batch):
    gained = RandomGain(min_db=-6, max_db=6)(batch, KEYS)["audio"]
    factors = np.asarray(gained.max(1) / batch["audio"].max(1))
    assert ((factors > 0.5) & (factors < 2) & (factors != 1)).all()
    noisy = AddNoise(min_snr_db=10, max_snr_db=20, color=1.0)(batch, KEYS)["audio"]
    power = np.square(batch["audio"]).sum(1) / np.square(noisy - batch["audio"]).sum(1)
    ratios = 10 * np.log10(power)
    assert ((ratios > 10) & (ratios < 20)).all()
    assert ratios[0] != ratios[1]
    assert not noisy[0, 500:].any()
    clean = AddNoise(rate=0.0)(batch, KEYS)["audio"]
    np.testing.assert_array_equal(clean, batch["audio"])


def test_evaluation_draws_from_the_sound_or_not_at_all(batch):
    for plain in (RandomGain(), AddNoise(), Reverberate(rate=1.0), TimeStretch()):
        assert plain(batch, None) is batch
    for kind in (RandomGain, AddNoise, Reverberate):
        noisy = kind(in_evaluation=True)
        whole = noisy(batch, None)["audio"]
        swapped = noisy({k: v[::-1] for k, v in batch.items()}, None)["audio"]
        np.testing.assert_allclose(swapped[::-1], whole, atol=1e-6)


def test_reverberation_follows_the_direct_sound():
    click = jnp.zeros((2, 800)).at[:, 100].set(1)
    found = Reverberate(rate=1.0, max_seconds=0.1)({"audio": click}, KEYS)["audio"]
    np.testing.assert_allclose(found[:, :100], 0, atol=1e-6)
    np.testing.assert_allclose(found[:, 100], 1, atol=1e-5)
    tail = np.square(found[:, 101:])
    np.testing.assert_allclose(10 * np.log10(tail.sum(1)), -5, atol=0.5)
    assert (tail[:, :100].sum(1) > 10 * tail[:, 200:300].sum(1)).all()


def test_time_stretch_is_that_of_one_sound(batch):
    found = TimeStretch(min_rate=1.25, max_rate=1.25)(batch, KEYS)
    assert found["audio_mask"].sum(1).tolist() == [400, 640]
    alone = time_stretch(batch["audio"][0, :500], 1.25, length=400)
    np.testing.assert_allclose(found["audio"][0, :250], alone[:250], atol=1e-4)
    assert not found["audio"][0, 400:].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: FixLength(0), "a size of at least 1"),
        (lambda: RandomGain(min_db=3, max_db=1), "min_db <= max_db, not 3, 1"),
        (lambda: Reverberate(min_seconds=0.0), "above 0"),
        (lambda: TimeStretch(min_rate=-1.0), "above 0"),
    ],
)
def test_wrong_fields(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
