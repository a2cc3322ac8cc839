"""Scaling of the cost of a step: `python -m benchmarks.curves [CURVE ...] --out DIR`.

By batch size, sequence length, width, depth and number of devices; writes the seconds of a step
and of compiling, and the exponent of the growth, as JSON lines and a PNG.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from benchmarks.statistics import exponent
from benchmarks.workloads import Workload, cnn, gpt, lstm, mlp
from jdl.errors import UserError, nearest
from jdl.files import to_json

ROOT = Path(__file__).resolve().parents[1]

TINY: dict[str, Any] = {
    "num_layers": 4,
    "embed_dim": 128,
    "max_position_embeddings": 64,
    "batch": 12,
    "num_heads": 4,
}

CURVES: dict[str, list[tuple[int, Workload]]] = {
    "batch": [(n, cnn(n)) for n in (1, 2, 4, 8, 16, 32)],
    "lstm-length": [(n, lstm(64, n)) for n in (25, 50, 100, 200, 400)],
    "gpt-length": [
        (n, gpt("", **{**TINY, "max_position_embeddings": n})) for n in (32, 64, 128, 256, 512)
    ],
    "width": [(n, gpt("", **{**TINY, "embed_dim": n})) for n in (64, 128, 256, 512)],
    "depth": [(n, gpt("", **{**TINY, "num_layers": n})) for n in (1, 2, 4, 8)],
    "devices": [(n, mlp(64)) for n in (1, 2, 4)],
}
"""By name: what grows, and the workload at each size. Virtual devices share the same cores."""


def measure(workload: Workload) -> dict[str, float]:
    """Measures seconds of a step and of the first, which compiles, in this process."""
    from benchmarks import ours

    case = ours.make_case(workload, "fp32", os.cpu_count() or 1)
    trainer = ours.Bare(ours.load(workload, "fp32"), case)
    begun = time.perf_counter()
    trainer.run(1)
    first = time.perf_counter() - begun
    once = trainer.run(2) / 2
    blocks = [trainer.run(max(2, round(0.5 / once))) / max(2, round(0.5 / once)) for _ in range(3)]
    return {"step_seconds": min(blocks), "compile_seconds": max(first - min(blocks), 0.0)}


def points(name: str) -> Iterator[dict[str, Any]]:
    """Measures a curve, each point in a process of its own."""
    for index, (size, _) in enumerate(CURVES[name]):
        flags = os.environ.get("XLA_FLAGS", "")
        if name == "devices":
            flags += f" --xla_force_host_platform_device_count={size}"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.curves", "--point", name, str(index)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            yield {"curve": name, "size": size, "error": reason}
        else:
            yield {"curve": name, "size": size, **json.loads(done.stdout.splitlines()[-1])}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots the curves on logarithmic axes, with their exponents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["curve"] for row in rows))
    figure, grid = plt.subplots(
        1, len(names), figsize=(3 * len(names), 3), layout="constrained", squeeze=False
    )
    for axes, name in zip(grid[0], names, strict=True):
        mine = [row for row in rows if row["curve"] == name and "error" not in row]
        sizes = [row["size"] for row in mine]
        for what in ("step_seconds", "compile_seconds"):
            seconds = [row[what] for row in mine]
            label = what.partition("_")[0]
            if len(mine) > 1:
                label += f", exponent {exponent(sizes, seconds):.2f}"
            axes.loglog(sizes, seconds, "o-", label=label)
        axes.set_xlabel(name)
        axes.legend(fontsize="x-small")
    grid[0][0].set_ylabel("seconds")
    figure.savefig(path, dpi=120)


def main(
    curves: Positional[tuple[str, ...]] = (), /, out: Path | None = None, point: bool = False
) -> None:
    """Measures and prints curves.

    Args:
        curves: batch, lstm-length, gpt-length, width, depth, devices (default: all).
        out: a directory for curves.jsonl and curves.png (the PNG needs matplotlib).
        point: measure one point, named by curve and index; what the others are made of.
    """
    if point:
        name, index = curves
        print(to_json(measure(CURVES[name][int(index)][1])))
        return
    for name in curves:
        if name not in CURVES:
            known = ", ".join(CURVES)
            hint = nearest(name, CURVES)
            raise UserError(f"there is no curve {name!r} (there are {known}){hint}")
    rows = []
    for name in curves or CURVES:
        found = list(points(name))
        rows += found
        for row in found:
            print(to_json(row), flush=True)
        good = [row for row in found if "error" not in row]
        if len(good) > 1:
            slope = exponent([r["size"] for r in good], [r["step_seconds"] for r in good])
            print(f"{name}: a step grows with exponent {slope:.2f}", flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "curves.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
        draw(rows, out / "curves.png")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.curves")
    except UserError as mistake:
        sys.exit(f"benchmarks: {mistake}")
