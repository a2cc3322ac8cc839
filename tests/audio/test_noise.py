"""The changes of sounds under which recognizers are scored."""

import numpy as np

from benchmarks import noise


def test_sounds_change_by_as_many_decibels_as_said():
    rng = np.random.default_rng(0)
    arrays = {"audio": (3000 * rng.normal(size=(2, 4000))).astype(np.int16)}
    power = np.square(arrays["audio"].astype(float)).mean(1)
    softer = np.square(noise.gain(-20, arrays)).mean(1)
    np.testing.assert_allclose(10 * np.log10(softer / power), -20, atol=1e-6)
    assert np.abs(noise.gain(40, arrays)).max() == noise.FULL, "clipped"
    added = np.square(noise.noise(10, arrays) - arrays["audio"]).mean(1)
    np.testing.assert_allclose(10 * np.log10(power / added), 10, atol=1e-3)
    assert not noise.silence(arrays).any()
