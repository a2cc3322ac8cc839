"""Spectra, mel features, inversion and effects against librosa, and by their properties."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.audio import (
    MelSpectrogram,
    add_noise,
    convolve,
    griffin_lim,
    istft,
    mel_filter_bank,
    mel_to_power,
    num_frames,
    power_to_db,
    stft,
    time_stretch,
)
from jdl.errors import UserError
from tests.audio.librosa_values import BANKS, PATH, some, sound

VALUES = {name: np.array(row) for name, row in json.loads(PATH.read_text()).items()}
FORM = {"n_fft": 256, "hop_length": 80, "win_length": 200}
MEL = MelSpectrogram(**FORM)


def _near(found, name, atol):
    np.testing.assert_allclose(some(found), VALUES[name], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", BANKS)
def test_filter_banks_are_librosas(name):
    _near(mel_filter_bank(**BANKS[name]), f"bank_{name}", 1e-9)


def test_stft_is_librosas():
    x = jnp.asarray(sound())
    found = stft(x, **FORM)
    assert len(found) == num_frames(len(x), 256, 80)
    _near(jnp.abs(found), "stft", 1e-5)
    _near(found.real, "stft_real", 1e-5)
    _near(jnp.abs(stft(x, padding="none", **FORM)), "stft_uncentered", 1e-5)


def test_mel_features_are_librosas():
    x = jnp.asarray(sound())
    mel = jax.jit(MEL.mel)(x)
    _near(mel, "mel", 1e-7)
    _near(power_to_db(mel), "db", 1e-3)
    _near(MEL.mfcc(x, 13), "mfcc", 1e-3)


def test_inversion_is_librosas():
    x = jnp.asarray(sound())
    spectrum = stft(x, **FORM)
    np.testing.assert_allclose(
        istft(spectrum, hop_length=80, win_length=200, length=3000), x, atol=1e-6
    )
    found = griffin_lim(jnp.abs(spectrum), hop_length=80, win_length=200, num_iters=8)
    _near(found, "griffin_lim", 2e-3)
    mel = MEL.mel(x)
    power = mel_to_power(mel, MEL.filters)
    assert power.min() >= 0
    error = np.square(power @ MEL.filters - mel).mean()
    assert error < 1.1 * VALUES["inverse_error"][0] + 1e-10


def test_time_stretch_is_librosas():
    x = jnp.asarray(sound())
    _near(time_stretch(x, 1.25, length=2400), "faster", 1e-2)
    _near(time_stretch(x, 0.8, length=3750), "slower", 1e-2)


@pytest.mark.parametrize("padding", ["center", "causal", "none"])
def test_frames_do_not_depend_on_padding_behind_a_sound(padding):
    x, form = jnp.asarray(sound(1000)), {**FORM, "padding": padding}
    count = num_frames(1000, 256, 80, padding)
    whole = stft(jnp.pad(x, (0, 500)), **form)[:count]
    np.testing.assert_allclose(whole, stft(x, **form), atol=1e-6)


def test_causal_frames_need_no_later_samples():
    x = jnp.asarray(sound(1000))
    form = {**FORM, "padding": "causal"}
    changed = x.at[480:].set(0)
    same = np.abs(stft(x, **form) - stft(changed, **form)).max(-1) == 0
    np.testing.assert_array_equal(same[:6], True)
    assert not same[6:].all()
    assert MelSpectrogram(**form).seconds(0) == pytest.approx((80 - 128) / 8000)


def test_log_mels_become_sounds_with_these_log_mels():
    x = jnp.asarray(sound())
    log_mel = MEL.log_mel(x)
    again = MEL.log_mel(MEL.waves(log_mel, jax.random.key(0)))
    assert again.shape == log_mel.shape
    assert np.abs(again - log_mel)[2:-2].mean() < 0.5


def test_noise_has_the_ratio_and_leaves_padding_and_silence():
    x = jnp.stack([jnp.asarray(sound(1000)), jnp.zeros(1000)])
    mask = jnp.arange(1000) < jnp.array([[600], [1000]])
    x = jnp.where(mask, x, 0)
    noise = jax.random.normal(jax.random.key(0), x.shape)
    found = add_noise(x, noise, jnp.array([10.0, 10.0]), mask)
    added = np.asarray(found - x)
    ratio = np.square(x[0]).sum() / np.square(added[0]).sum()
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=1e-3)
    assert not added[0, 600:].any()
    assert not added[1].any()


def test_convolve_is_numpys():
    x, response = sound(500), sound(300)
    found = convolve(jnp.asarray(x), jnp.asarray(response))
    np.testing.assert_allclose(found, np.convolve(x, response)[:500], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fmax": 5000.0}, "fmin < fmax <= sample_rate / 2, not 0, 5000 and 4000 Hz"),
        ({"hop_length": 400}, "hop_length <= win_length <= n_fft, not 400"),
        ({"n_mels": 200}, "200 bands, of which [0-9]+ lie between"),
        ({"floor": 0.0}, "a floor above 0"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        MelSpectrogram(**fields)
