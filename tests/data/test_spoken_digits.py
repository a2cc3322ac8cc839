"""The recordings of `spoken_digits_judge` as spectra, on recordings in the form of TFDS."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import jdl
from jdl.data import Data
from jdl.data.sources import read_array

FILE = Path(__file__).parents[2] / "experiments" / "spoken_digits_judge.py"


@dataclass(frozen=True, kw_only=True)
class Recordings(Data):
    """Ten takes of two digits of two speakers, of different lengths, one of them silent."""

    test_fraction: float = 0.0
    validation_fraction: float = 0.0

    def load(self):
        rng = np.random.default_rng(0)
        found = []
        for name, label in (("3_theo", 3), ("7_george", 7)):
            for take in range(10):
                wave = rng.integers(-3000, 3000, 900 * (take + 1)) * (take != 2)
                file = f"{name}_{take}.wav".encode()
                found.append({"audio": np.int16(wave), "audio/filename": file, "label": label})
        return {"train": found}

    def full_name(self):
        return "recordings:1"


def test_takes_below_five_are_the_test_split_and_classes_name_digit_and_speaker():
    data = jdl.load(FILE).experiment.data
    recordings = dataclasses.replace(data.recordings, data=Recordings())
    data = dataclasses.replace(data, recordings=recordings)
    splits = data.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 9, "validation": 1, "test": 10
    }  # fmt: skip
    image, label = (read_array(splits["test"], name) for name in ("image", "label"))
    assert image is not None
    assert label is not None
    assert (image.shape, image.dtype) == ((10, 64, 40, 1), np.float32)
    assert [data.output_names()[each] for each in label] == ["3 theo"] * 5 + ["7 george"] * 5
    floor = np.float32(np.log(1e-4))
    np.testing.assert_allclose(image[2], floor, rtol=1e-6)
    np.testing.assert_allclose(image[0, 15:], floor, rtol=1e-6)  # zeros after 900 samples
    assert (image[0, :8] > floor).any()
    assert image.max() < 6, "the range of values of `spoken_digits_tts`"
    assert data.fit()["classes"] == list(data.output_names())
