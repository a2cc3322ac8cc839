"""Convolutions part by part: `python -m benchmarks.convolutions`.

For each shape of the experiments, the forward pass and both gradients by XLA's convolution, by the
form that `jdl.ops` takes without the extra `onednn`, and by oneDNN. The forms in
`jdl/ops/convolution.py` were chosen by this table.
"""

import functools
import json as json_lib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.__main__ import open_rows
from benchmarks.worker import processor
from jdl.ops import convolution, onednn
from jdl.ops.convolution import BY_XLA, ON_CPUS, PARTS, Window
from jdl.trainer.allocator import configure_allocator

NAMES = ("forward", "input gradient", "kernel gradient")


@dataclass(frozen=True)
class Shape:
    """A convolution of an experiment."""

    images: tuple[int, int, int, int]  # batch, height, width, channels
    kernel: int  # rows and columns
    features: int
    strides: int = 1
    padding: str = "SAME"

    @property
    def window(self) -> Window:
        """How it reads its images."""
        sides, steps = (self.kernel, self.kernel), (self.strides, self.strides)
        pads = jax.lax.padtype_to_pads(self.images[1:3], sides, steps, self.padding)
        return Window(sides, steps, tuple((int(a), int(b)) for a, b in pads), (1, 1))


SHAPES = (
    Shape((128, 32, 32, 3), 3, 16),  # cifar10_resnet
    Shape((128, 32, 32, 16), 3, 16),
    Shape((128, 32, 32, 16), 3, 32, 2),
    Shape((128, 16, 16, 32), 3, 32),
    Shape((128, 8, 8, 64), 3, 64),
    Shape((32, 150, 150, 3), 3, 32, 1, "VALID"),  # cats_vs_dogs_cnn
    Shape((32, 74, 74, 32), 3, 64, 1, "VALID"),
    Shape((32, 36, 36, 64), 3, 128, 1, "VALID"),
    Shape((4, 224, 224, 3), 7, 64, 2),  # imagenet_resnet50
    Shape((4, 56, 56, 64), 1, 256),
    Shape((4, 56, 56, 64), 3, 64),
    Shape((4, 56, 56, 128), 3, 128, 2),
    Shape((4, 28, 28, 128), 3, 128),
    Shape((4, 28, 28, 512), 1, 128),
    Shape((4, 14, 14, 256), 3, 256),
    Shape((4, 7, 7, 512), 3, 512),
)


def measure(shape: Shape, seconds: float = 0.3) -> list[dict[str, Any]]:
    """Returns a row per part: the least milliseconds of each form, called in turn."""
    window, rng = shape.window, np.random.default_rng(0)
    size = window.outputs(shape.images[1:3])
    channels = shape.images[3]
    images, kernel, outputs = (
        jax.numpy.asarray(rng.normal(size=each), np.float32)
        for each in (
            shape.images,
            (*window.kernel, channels, shape.features),
            (shape.images[0], *size, shape.features),
        )
    )
    operands = ((images, kernel), (outputs, kernel), (images, outputs))
    sizes = (size, shape.images[1:3], window.kernel)
    flops = 2 * outputs.size * channels * shape.kernel**2
    rows = []
    for part, (name, arguments) in enumerate(zip(NAMES, operands, strict=True)):
        given = {"window": window, "size": sizes[part]}
        forms: dict[str, Callable[..., Any]] = {
            "xla": BY_XLA[part],
            "without onednn": ON_CPUS[part],
        }
        spec = convolution.describe(part, *arguments, **given)
        if onednn.supports(part, arguments[0].dtype, spec):
            forms["onednn"] = PARTS[part].bind
        compiled = {form: jax.jit(functools.partial(f, **given)) for form, f in forms.items()}
        least = interleave({form: (f, arguments) for form, f in compiled.items()}, seconds)
        rows.append({"shape": repr(shape), "part": name, "flops": flops, "milliseconds": least})
    return rows


def interleave(calls: dict[str, Any], seconds: float) -> dict[str, float]:
    """The least milliseconds of each call, taken in turn for `seconds` each."""
    least = dict.fromkeys(calls, float("inf"))
    for function, arguments in calls.values():
        jax.block_until_ready(function(*arguments))
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, (function, arguments) in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            least[name] = min(least[name], 1e3 * (time.perf_counter() - begun))
    return least


def main(json: Path | None = None) -> None:
    """Prints the table.

    Args:
        json: a file for the rows, one JSON object a line.
    """
    configure_allocator()
    file, machine = open_rows(json), processor()
    print(f"{machine}; jax {jax.__version__}, oneDNN {onednn.version()}; least milliseconds")
    for shape in SHAPES:
        images = "x".join(map(str, shape.images))
        text = f"{images}, {shape.kernel}x{shape.kernel}x{shape.features}, {shape.strides}"
        for row in measure(shape):
            print(json_lib.dumps({**row, "machine": machine}), file=file, flush=True)
            times = ", ".join(f"{name} {ms:.1f}" for name, ms in row["milliseconds"].items())
            best = row["flops"] / min(row["milliseconds"].values()) / 1e6
            print(f"{text + ' ' + shape.padding:36} {row['part']:16} {times}; {best:.0f} GFLOP/s")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.convolutions")
