"""CNN that tells digit and speaker of recordings, the judge of `spoken_digits_tts`.

    TFDS_DATA_DIR=DIR jdl train spoken_digits_judge --workdir runs/spoken_digits_judge

The 60 classes are the ten digits of six speakers (Free Spoken Digit Dataset); recordings 0 to 4 of
each are the test split, as its authors have it.

Expect: test accuracy 0.9967 (1 seed, min 0.9967), 76 s, 1 busy core of an Intel Xeon
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from spoken_digits import SPEAKERS, SpokenDigits

from jdl import Experiment
from jdl.audio import MelSpectrogram
from jdl.data import Arrays, Data
from jdl.data.sources import read_examples
from jdl.models import CNN
from jdl.optimizers import AdamW, Cosine

MEL = MelSpectrogram(n_fft=320, hop_length=96, floor=1e-4)
FRAMES = 64
NAMES = tuple(f"{digit} {speaker}" for digit in range(10) for speaker in SPEAKERS)


def spectra(waves):
    """Returns log-mel spectra (sounds, FRAMES, bands, 1) of sounds, each scaled to a peak of 1."""
    length = (FRAMES - 1) * MEL.hop_length  # longer ones are cut off, shorter ones padded
    rows = np.zeros((len(waves), length), np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = (wave / max(np.abs(wave).max(initial=0), 1e-4))[:length]
    compute = jax.jit(MEL.log_mel)
    return np.concatenate([compute(rows[i : i + 256]) for i in range(0, len(rows), 256)])[..., None]


@dataclass(frozen=True, kw_only=True)
class DigitSpectra(Data):
    """Log-mel spectra of spoken digits, `image`, and the class of digit and speaker, `label`."""

    recordings: Data = SpokenDigits()
    stratify: bool | None = None

    def load(self):
        splits = {}
        for name, source in self.recordings.load().items():
            found = read_examples(source, range(len(source)))
            image = spectra([np.asarray(x["audio"], np.float32) / 2**15 for x in found])
            label = [int(x["label"]) * len(SPEAKERS) + int(x["speaker"]) for x in found]
            splits[name] = {"image": image, "label": np.array(label)}
        return Arrays(splits).load()

    def output_names(self):
        return NAMES


@dataclass(frozen=True)
class RandomShift:
    """Moves spectra in time, around their end."""

    frames: int = 8

    def __call__(self, batch, keys):
        if keys is None:
            return batch

        def one(key, image):
            return jnp.roll(image, jax.random.randint(key, (), -self.frames, self.frames + 1), 0)

        return {**batch, "image": jax.vmap(one)(keys, batch["image"])}


experiment = Experiment(
    model=CNN(
        channels=(16, 32, 64), dense=(128,), num_classes=60, batch_norm=True, dropout_rate=0.3
    ),
    data=DigitSpectra(device_transforms=(RandomShift(),)),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.1), weight_decay=1e-2),
    epochs=25,
    batch_size=64,
)
