"""Values of librosa, with which `test_spectra.py` compares; written by this script.

    python tests/audio/librosa_values.py

It needs librosa (the values are of version 0.11), which the tests do not.
"""

import json
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".json")

BANKS = {
    "digits": {"sample_rate": 8000, "n_fft": 256, "n_mels": 40},
    "speech": {"sample_rate": 16000, "n_fft": 512, "n_mels": 80, "fmin": 20.0, "fmax": 7600.0},
    "music": {"sample_rate": 22050, "n_fft": 2048, "n_mels": 128},
}
"""Arguments of filter banks by name."""


def sound(samples: int = 3000, rate: int = 8000) -> np.ndarray:
    """Returns a rising tone with overtones that fades, and hiss, (samples,) float32."""
    t = np.arange(samples) / rate
    phase = 2 * np.pi * (200 * t + 1500 * t**2)
    hiss = np.sin(1e4 * np.sin(np.arange(samples) * 1.7)) * 0.02
    tone = np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.2 * np.sin(5 * phase)
    return (0.4 * np.exp(-3 * t) * tone + hiss).astype(np.float32)


def some(values: np.ndarray) -> np.ndarray:
    """Returns some 60 values of an array, from all of its places."""
    flat = np.asarray(values).ravel()
    return flat[:: max(1, len(flat) // 60)]


def main() -> None:
    """Writes the values."""
    import librosa

    x, form = sound(), {"n_fft": 256, "hop_length": 80, "win_length": 200}
    mel = librosa.feature.melspectrogram(y=x, sr=8000, n_mels=40, pad_mode="constant", **form)
    spectrum = librosa.stft(x, **form)
    short = {"n_fft": 256, "hop_length": 64}
    found = {
        "stft": np.abs(spectrum).T,
        "stft_real": spectrum.real.T,
        "stft_uncentered": np.abs(librosa.stft(x, center=False, **form)).T,
        "mel": mel.T,
        "db": librosa.power_to_db(mel).T,
        "mfcc": librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=13).T,
        "griffin_lim": librosa.griffinlim(
            np.abs(spectrum), n_iter=8, init=None, hop_length=80, win_length=200
        ),
        "faster": librosa.effects.time_stretch(x, rate=1.25, **short),
        "slower": librosa.effects.time_stretch(x, rate=0.8, **short),
    }
    for name, bank in BANKS.items():
        rate, size = bank["sample_rate"], bank["n_fft"]
        rest = {k: v for k, v in bank.items() if k in ("n_mels", "fmin", "fmax")}
        found[f"bank_{name}"] = librosa.filters.mel(sr=rate, n_fft=size, **rest).T
    restored = librosa.feature.inverse.mel_to_stft(mel, sr=8000, n_fft=256, power=1.0)
    basis = librosa.filters.mel(sr=8000, n_fft=256, n_mels=40)
    rows = {name: [float(f"{v:.7g}") for v in some(values)] for name, values in found.items()}
    rows["inverse_error"] = [float(np.square(basis @ restored - mel).mean())]
    PATH.write_text(json.dumps(rows, indent=None).replace("], ", "],\n") + "\n")


if __name__ == "__main__":
    main()
