"""Augmentation by generation: 100 digits, and images that a VAE makes which saw the same 100.

    TFDS_DATA_DIR=DIR python experiments/digits_generated.py --workdir runs/digits_generated

Trains the CNN of `mnist_few_digits`, longer: without augmentation, with ordinary augmentation, with
generated images as half of each batch, and with both. Each seed draws other labels, on which
it trains a generator of its own (`digits_generator`). The last column is the mean gain over no
augmentation and its 95 % interval, of paired differences (Student's t).
"""

import argparse
import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from digits_generator import experiment as generator
from mnist_few_digits import experiment as few
from mnist_low_digits import experiment as low

import jdl
from jdl.data import Data, Mixture, Scale, Stream
from jdl.hooks import Checkpoint, Progress

VARIANTS = ("none", "ordinary", "generated", "both")


@dataclass(frozen=True, kw_only=True)
class Generated(Data):
    """Images that a run has drawn, of the classes of its few training examples."""

    data: Data  # what the run was trained on
    run: str = "runs/digits_generator"  # of `digits_generator`, or like it
    count: int = 1000  # images

    def splits(self):
        """Returns the images as `train`, uint8, and the other splits as they are."""
        splits = self.data.splits()
        pixels = jdl.open(Path(self.run)).sample(self.count, split="train").pixels
        images, real = (pixels * 255).round().astype(np.uint8), splits["train"]
        labels = [real[row]["label"] for row in range(len(real))]
        rows = [{"image": x, "label": labels[i % len(real)]} for i, x in enumerate(images)]
        return {**splits, "train": rows}


def variant(experiment, name, augment, run):
    """Returns an experiment with some of the augmentations."""
    data = dataclasses.replace(experiment.data, device_transforms=())
    transforms = (augment, Scale()) if name in ("ordinary", "both") else (Scale(),)
    if name in ("none", "ordinary"):
        data = dataclasses.replace(data, device_transforms=transforms)
    else:
        streams = Stream("real", data), Stream("generated", Generated(data=data, run=str(run)))
        data = Mixture(streams, device_transforms=transforms)
    return dataclasses.replace(experiment, data=data)


def compare(experiment, generator, augment, metric):
    """Trains all variants with several seeds, and prints the metric on the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    scores = {name: [] for name in VARIANTS}
    for seed in range(options.seeds):
        changes = {"seed": seed, "data.split_seed": seed}
        folder = options.workdir / f"seed-{seed}"
        jdl.train(jdl.override(generator, changes), folder / "generator")
        for name in VARIANTS:
            one = variant(jdl.override(experiment, changes), name, augment, folder / "generator")
            scores[name].append(jdl.train(one, folder / name).result["metrics"]["test"][metric])
    print(f"test {metric} of {options.seeds} seeds")
    for name, values in scores.items():
        mean, least = statistics.fmean(values), min(values)
        print(f"{name:10} {mean:.4f} (min {least:.4f})  {gain(values, scores['none'])}")


def gain(values, others):
    """Returns the mean of paired differences and its 95 % interval, as text."""
    from scipy.stats import t

    apart = np.subtract(values, others)
    if len(apart) < 2 or not apart.any():
        return ""
    half = t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return f"{apart.mean():+.4f} [{apart.mean() - half:+.4f}, {apart.mean() + half:+.4f}]"


augment = low.data.device_transforms[0]
hooks = (Progress(), Checkpoint(every=500))
few = dataclasses.replace(few, hooks=hooks, epochs=None, steps=500, batch_size=40)
experiment = variant(few, "both", augment, "runs/digits_generator")

if __name__ == "__main__":
    compare(few, generator, augment, "accuracy")
