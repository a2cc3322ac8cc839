"""An experiment in a file of its own, and the flags that it is trained with."""

import json

SOURCE = '''"""Two clouds of points, classified by a small network."""

import numpy as np

from jdl import Experiment, Runtime
from jdl.data import Arrays
from jdl.models import MLP

generator = np.random.default_rng(0)
label = generator.integers(0, 2, 80)
image = generator.normal(size=(80, 3)) + 2 * label[:, None]
experiment = Experiment(
    model=MLP(widths=(5,), features=2),
    data=Arrays({"train": {"image": image, "label": label}}),
    steps=6,
    batch_size=8,
    runtime=Runtime(log_every=2),
)
'''
CHANGES = {
    "optimizer": "sgd",
    "optimizer.learning_rate": "0.1",
    "hooks.2.every": "3",
    "model.widths": ["4", "3"],
}
FLAGS = ["--optimizer", "sgd", "--optimizer.learning-rate", "0.1", "--hooks.2.every=3"]
FLAGS += ["--model.widths", "4", "3"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(path):
    return json.loads(path.read_text())
