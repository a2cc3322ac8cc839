"""Seconds of integrated gradients and occlusion, by jdl or by Captum, on networks of equal shape.

    python -m benchmarks.explanations jdl
    python -m benchmarks.explanations captum

Integrated gradients of 64 images of MNIST's size at 50 steps, and occlusion of one photograph of
150x150 pixels by windows of 15 pixels, 8 apart. Medians of five runs after one that compiles; of
Captum those of its best `internal_batch_size` and `perturbations_per_eval`.
"""

import json
import statistics
import sys
import time

import numpy as np

REPEATS = 5
BATCHES = (None, 64, 128, 256, 512)
PERTURBATIONS = (1, 4, 16, 64)
DIGITS = (64, 28, 28, 1), (16, 32), 128, 10
PHOTO = (1, 150, 150, 3), (32, 64, 128), 512, 2


def median(function):
    """Returns the median of seconds of a function."""
    function()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def by_jdl():
    """Returns seconds of both methods by jdl."""
    import jax
    import jax.numpy as jnp

    from jdl.explain import Baseline, Class, IntegratedGradients, Occlusion, Subject
    from jdl.explain.features import grid_features
    from jdl.explain.method import Request
    from jdl.models import CNN
    from jdl.state import TrainState
    from jdl.tasks import Classification
    from jdl.trainer.allocator import configure_allocator

    configure_allocator()

    def request(shape, channels, dense, classes):
        x = np.random.default_rng(0).random(shape, np.float32)
        model = CNN(channels=channels, dense=(dense,), num_classes=classes)
        params = model.init(jax.random.key(0), x[:1])["params"]
        batch = {"image": x, "mask": np.ones(len(x), bool)}
        state = TrainState(jnp.zeros((), int), jax.random.key(0), params, {}, ())
        subject = Subject(Classification(), model, state, Class(0), batch)
        rows = {"batch": batch, "target": {"label": np.zeros(len(x), np.int32)}}
        features = grid_features({"image": x}, {}, {})
        return Request(subject=subject, params=params, x={"image": x}, rows=rows, features=features)

    gradients = IntegratedGradients(steps=50, max_steps=50, baseline=Baseline("zero"))
    occlusion = Occlusion(window=15, stride=8)
    digits, photo = request(*DIGITS), request(*PHOTO)
    return {
        "integrated_gradients": median(lambda: gradients.attribute(digits)),
        "occlusion": median(lambda: occlusion.attribute(photo)),
    }


def by_captum():
    """Returns seconds of both methods by Captum at its best chunks."""
    import torch
    from captum.attr import IntegratedGradients, Occlusion
    from torch import nn

    def network(shape, channels, dense, classes):
        layers, before, side = [], shape[3], shape[1]
        for count in channels:
            convolution = nn.Conv2d(before, count, 3, padding=1)
            layers += [convolution, nn.MaxPool2d(2), nn.ReLU()]
            before, side = count, side // 2
        layers += [nn.Flatten(), nn.Linear(before * side * side, dense), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(dense, classes)).eval()
        x = np.random.default_rng(0).random(shape, np.float32).transpose(0, 3, 1, 2)
        return model, torch.tensor(np.ascontiguousarray(x))

    model, x = network(*DIGITS)
    gradients = IntegratedGradients(model)
    found = {
        str(size): median(
            lambda size=size: gradients.attribute(x, target=0, n_steps=50, internal_batch_size=size)
        )
        for size in BATCHES
    }
    photo, y = network(*PHOTO)
    occlusion = Occlusion(photo)
    windows = {"sliding_window_shapes": (3, 15, 15), "strides": (3, 8, 8)}

    def occlude(size):
        with torch.no_grad():
            occlusion.attribute(y, target=0, perturbations_per_eval=size, **windows)

    other = {str(size): median(lambda size=size: occlude(size)) for size in PERTURBATIONS}
    return {
        "integrated_gradients": min(found.values()),
        "occlusion": min(other.values()),
        "by_internal_batch_size": found,
        "by_perturbations_per_eval": other,
    }


if __name__ == "__main__":
    print(json.dumps({"jdl": by_jdl, "captum": by_captum}[sys.argv[1]]()))
