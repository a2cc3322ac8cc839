"""Recognition of real digits by a CNN that has heard none: trained on `spoken_digits_tts`.

    TFDS_DATA_DIR=DIR jdl train spoken_digits_tts --workdir runs/spoken_digits_tts
    TFDS_DATA_DIR=DIR jdl train spoken_digits_synthetic --seeds 3

On 2,700 sounds, 45 of each digit and speaker, as many as there are recordings to train on.

Expect: test accuracy 0.9822 (3 seeds, min 0.9733), 101 s, 1 busy core of an Intel Xeon
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spoken_digits import SPEAKERS
from spoken_digits_judge import NAMES, DigitSpectra, RandomShift, spectra
from spoken_digits_judge import experiment as judge

import jdl
from jdl.data import Arrays, Data


@dataclass(frozen=True, kw_only=True)
class Synthetic(Data):
    """Spectra of sounds that a run makes, as `train`, and of real recordings as `test`."""

    recordings: Data = DigitSpectra(validation_fraction=0.0)
    run: str = "runs/spoken_digits_tts"  # directory of the run
    count: int = 2700  # sounds

    def load(self):
        run = jdl.open(Path(self.run))
        label = np.arange(self.count) % len(NAMES)
        image = spectra(run.sample(self.count, label=label.tolist()).waves)
        test = self.recordings.split("test")
        real = {name: np.stack([each[name] for each in test]) for name in ("image", "label")}
        splits = {"train": {"image": image, "label": label}, "test": real}
        for arrays in splits.values():
            arrays["label"] = arrays["label"] // len(SPEAKERS)
        return Arrays(splits).load()

    def output_names(self):
        return tuple(map(str, range(10)))


experiment = dataclasses.replace(
    judge,
    model=judge.model.clone(num_classes=10),
    data=Synthetic(device_transforms=(RandomShift(),)),
)
