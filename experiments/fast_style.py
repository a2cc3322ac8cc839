"""Fast style transfer (Johnson et al., 2016): a network that paints any photograph in one pass.

    TFDS_DATA_DIR=DIR jdl train cats_vs_dogs_vgg --workdir runs/cats_vs_dogs_vgg
    TFDS_DATA_DIR=DIR jdl train fast_style --workdir runs/fast_style
    jdl predict runs/fast_style photo.jpg --draw painted

Trained on photographs of cats and dogs, with the losses of `photo_style` and its style. This
optimizes 16 photographs of the test split as `photo_style` does, and compares losses and seconds:

    TFDS_DATA_DIR=DIR python experiments/fast_style.py runs/fast_style
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from cats_vs_dogs_vgg import experiment as vgg
from photo_style import experiment as photo

import jdl
from jdl import Experiment, Runtime
from jdl.data import Arrays, RandomFlip, Resize, Scale
from jdl.hooks import Progress, Sample
from jdl.models import ImageTransformNet
from jdl.optimizers import Adam, Cosine

experiment = Experiment(
    model=ImageTransformNet(channels=(16, 32, 64)),
    task=dataclasses.replace(photo.task, inputs="image", any_size=True),
    data=dataclasses.replace(
        vgg.data,
        transforms=(Resize(height=128, width=128),),
        device_transforms=(RandomFlip(), Scale()),
    ),
    optimizer=Adam(2e-3, schedule=Cosine(warmup=0.05)),
    hooks=(*Experiment.hooks, Sample(every=200)),
    epochs=1.5,
    batch_size=4,
    runtime=Runtime(log_every=20),
    final_train_evaluation=False,
)


def compare(fast, count=16):
    """Prints loss and seconds of unseen photographs, painted by the network and optimized."""
    images = fast.data.pipeline("test").examples(np.arange(count))["image"]
    optimized = jdl.override(
        photo, {"model.count": count, "batch_size": count, "hooks": (Progress(),)}
    )
    data = Arrays(
        {"train": {"image": images, "index": np.arange(count)}},
        device_transforms=(Scale(),),
        test_fraction=0,
        validation_fraction=0,
    )
    own = fast.experiment.task
    task = dataclasses.replace(photo.task, style=own.style, features=own.features)
    run = jdl.train(dataclasses.replace(optimized, data=data, task=task))
    fast.predict(images)
    begun = time.perf_counter()
    pictures = fast.predict(images)
    seconds = time.perf_counter() - begun
    pixels = np.log(pictures.clip(1e-6, 1 - 1e-6)) - np.log1p(-pictures.clip(1e-6, 1 - 1e-6))
    state = run.gather_state()
    painted = run.evaluate("train", state.replace(params={"pixels": pixels}))
    best, noise = run.evaluate("train"), run.history["train"]
    for name in ("content", "style", "loss"):
        print(
            f"{name:8} noise {noise[name][0]:.4f}, optimized {best[name]:.4f}, "
            f"network {painted[name]:.4f}, ratio {painted[name] / best[name]:.2f}"
        )
    whole = run.result["seconds"] - run.result["compile_seconds"]
    print(f"seconds optimized {whole:.2f}, network {seconds:.4f}, ratio {whole / seconds:.0f}")


if __name__ == "__main__":
    compare(jdl.open(Path(sys.argv[1])))
