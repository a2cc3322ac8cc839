"""Measures all implementations of a workload: parity, then interleaved blocks."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.statistics import ratio, summary
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]

TOLERANCES = {
    "fp32": {"first_loss": 1e-5, "gradient_norm": 1e-4, "curve": 1e-3},
    "tf32": {"first_loss": 2.5e-3, "gradient_norm": 2.5e-3, "curve": 2.5e-3},
    "bf16": {"first_loss": 2e-2, "gradient_norm": 2e-2, "curve": 2e-2},
}
"""Largest relative difference to jdl; a row beyond them is void. On GPUs float32 products
round their operands to TF32, which has three bits more than bfloat16.
"""

DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second, by what a device's name contains."""


@dataclass(frozen=True)
class Protocol:
    """Numbers of blocks and steps, and their durations."""

    rounds: int = 5
    steps: int = 3  # of a block, at least
    seconds: float = 2.0  # of a block, at least
    curve: int = 20  # steps of the loss curve; 0: only the first loss and gradient
    quick: bool = False
    profile: int = 0  # steps of jdl that are profiled after the blocks
    together: bool = False  # start and compile all implementations at once


QUICK = Protocol(rounds=3, steps=2, seconds=1.0, curve=0, quick=True)


LOOKS = 5
"""Times that the machine's limits are measured, at most, where they lie below what a step did."""


class Failed(Exception):
    """An implementation failed; the others continue."""


class Worker:
    """An implementation in its own process."""

    def __init__(self, implementation: str, threads: int, **environment: str) -> None:
        self.implementation = implementation
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                **dict.fromkeys(limits, str(threads)),
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several share the device
                "JAX_ENABLE_COMPILATION_CACHE": "false",  # compiling is measured too
                **environment,
            },
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Sends a request and returns the answer.

        Raises:
          Failed: it reported an error, or the process has died.
        """
        return self.timed(do, **arguments)[0]

    def timed(self, do: str, **arguments: Any) -> tuple[Any, float]:
        """The answer, and the seconds that it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"its process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["value"], reply["seconds"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(
    workload: Workload,
    implementations: Sequence[str],
    machine: dict[str, Any],
    dtype: str,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """Returns a row per implementation; the others are compared with `jdl`, the first."""
    chosen = workload.key
    if workload.random:
        protocol = dataclasses.replace(protocol, curve=0)
    threads = machine["cores"]
    rows: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in implementations:
                workers[name] = Worker(name, threads)
                rows[name] = _empty(workload, name, machine, dtype, protocol)
            made = {"folder": folder, "dtype": dtype, "threads": threads, **chosen}
            ours = {"jdl": workers["jdl"]}
            _each(ours, rows, lambda worker, _: worker.ask("make", **made))
            if "error" in rows["jdl"]:
                return [rows["jdl"]]  # the others have no initial weights
            start = partial(_start, folder=folder, chosen=chosen, protocol=protocol)
            _each(workers, rows, start, together=protocol.together)
            _judge(rows, dtype if machine["platform"] == "cpu" or dtype == "bf16" else "tf32")
            blocks = _interleave(workers, rows, protocol)
            if protocol.profile:
                _each({"jdl": workers["jdl"]}, rows, lambda w, row: _profile(w, row, protocol))
            _finish(workload, workers, rows, blocks, folder, dtype)
        finally:
            for worker in workers.values():
                worker.close()
    return list(rows.values())


def _empty(
    workload: Workload, name: str, machine: dict[str, Any], dtype: str, protocol: Protocol
) -> dict[str, Any]:
    return {
        "workload": workload.name,
        "size": workload.size,
        "implementation": name,
        "device": machine["device"],
        "dtype": dtype,
        "batch": workload.batch,
        "versions": dict(machine["versions"]),
        "flags": machine["flags"],
        "quick": protocol.quick,
    }


def _each(
    workers: dict[str, Worker], rows: dict[str, dict[str, Any]], act: Any, together: bool = False
) -> None:
    """Calls each worker that has not failed; a failure becomes its row's error."""

    def call(name: str) -> None:
        if "error" not in rows[name]:
            try:
                act(workers[name], rows[name])
            except Failed as error:
                rows[name]["error"] = str(error)

    with ThreadPoolExecutor(len(workers) if together else 1) as pool:
        list(pool.map(call, workers))


def _start(
    worker: Worker,
    row: dict[str, Any],
    folder: str,
    chosen: dict[str, str],
    protocol: Protocol,
) -> None:
    """Loads, takes the first step, and measures what parity compares."""
    name = worker.implementation
    version = worker.ask("load", implementation=name, folder=folder, **chosen)
    row["versions"][name.partition("-")[0]] = version
    loss, norm = worker.ask("gradient")
    row["parity"] = {"loss": loss, "gradient_norm": norm}
    _, row["first_step_seconds"] = worker.timed("run", steps=1)
    if protocol.curve:
        row["parity"]["losses"] = _curve(worker, row, protocol.curve)


def _curve(worker: Worker, row: dict[str, Any], steps: int) -> list[float]:
    """Losses of the first steps; kept between runs for the same code and versions."""
    digest = hashlib.sha256()
    for part in ("jdl", "benchmarks", "experiments"):
        for path in sorted((ROOT / part).rglob("*.py")):
            digest.update(path.read_bytes())
    fields = ("workload", "size", "implementation", "device", "dtype", "batch", "versions", "flags")
    digest.update(json.dumps([steps, *(row[field] for field in fields)]).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jdl" / "curves"
    path = cache / f"{digest.hexdigest()}.json"
    if path.exists():
        return json.loads(path.read_text())
    losses = worker.ask("curve", steps=steps)
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(losses))
    return losses


def _profile(worker: Worker, row: dict[str, Any], protocol: Protocol) -> None:
    """Milliseconds and count of each event in a step, the most expensive first."""
    events = worker.ask("profile", steps=protocol.profile)
    costs = {
        name: (milliseconds / protocol.profile, count / protocol.profile)
        for name, (milliseconds, count) in events.items()
    }
    row["profile"] = dict(sorted(costs.items(), key=lambda item: -item[1][0]))


def _judge(rows: dict[str, dict[str, Any]], precision: str) -> None:
    """Compares every row's first step and curve with jdl's."""
    limits = TOLERANCES[precision]
    if "error" in rows["jdl"]:
        for row in rows.values():
            row.setdefault("error", "there is no row of jdl to compare it with")
        return
    reference = dict(rows["jdl"]["parity"])
    for row in rows.values():
        if "error" in row:
            continue
        parity = row["parity"]
        found = {
            "first_loss": _off(parity["loss"], reference["loss"]),
            "gradient_norm": _off(parity["gradient_norm"], reference["gradient_norm"]),
        }
        if "losses" in parity:
            found["curve"] = max(map(_off, parity.pop("losses"), reference["losses"]))
        parity |= {"differences": found, "passed": all(found[k] <= limits[k] for k in found)}


def _off(value: float, reference: float) -> float:
    difference = abs(value - reference) / max(abs(reference), 1e-12)
    return difference if np.isfinite(difference) else float("inf")


def _interleave(
    workers: dict[str, Worker], rows: dict[str, dict[str, Any]], protocol: Protocol
) -> dict[str, list[float]]:
    """Seconds of a step in each block, alternating the order of the implementations."""
    steps: dict[str, int] = {}
    blocks: dict[str, list[float]] = {name: [] for name in workers}

    def warm(worker: Worker, row: dict[str, Any]) -> None:
        once = worker.ask("run", steps=protocol.steps) / protocol.steps
        count = max(protocol.steps, round(protocol.seconds / max(once, 1e-6)))
        if once < 0.05:  # too few steps to estimate the duration of many
            once = worker.ask("run", steps=count) / count
            count = max(protocol.steps, round(protocol.seconds / once))
        steps[worker.implementation] = count

    def block(worker: Worker, row: dict[str, Any]) -> None:
        count = steps[worker.implementation]
        blocks[worker.implementation].append(worker.ask("run", steps=count) / count)

    _each(workers, rows, warm)
    order = workers
    for _ in range(protocol.rounds if protocol.quick else 2 * protocol.rounds):
        _each(order, rows, block)
        order = dict(reversed(order.items()))
    return blocks


def _finish(
    workload: Workload,
    workers: dict[str, Worker],
    rows: dict[str, dict[str, Any]],
    blocks: dict[str, list[float]],
    folder: str,
    dtype: str,
) -> None:
    """Turns seconds into rates, shares of the limits, and ratios."""
    limits: dict[str, float] = {}

    def look(worker: Worker, row: dict[str, Any]) -> None:
        cost = worker.ask("cost", folder=folder)
        limits.update(_prefixed(cost))
        second = summary(blocks["jdl"])["median"]
        for _ in range(LOOKS):
            found = worker.ask("ceilings", dtype=dtype, moved=cost["bytes"])
            limits.update({name: max(rate, limits.get(name, 0)) for name, rate in found.items()})
            if _against_limits(limits, second, "")["floor_seconds"] < second:
                break  # else another process had slowed the measurement of the limits

    _each({"jdl": workers["jdl"]}, rows, look)

    def fill(worker: Worker, row: dict[str, Any]) -> None:
        row["peak_bytes"] = worker.ask("peak")
        taken = summary(blocks[worker.implementation])
        second = taken["median"]
        row["step_seconds"] = taken
        row["compile_seconds"] = max(row["first_step_seconds"] - second, 0.0)
        row["items_per_second"] = workload.batch / second
        row["tokens_per_second"] = workload.batch * workload.tokens / second or None
        if limits:
            row |= _against_limits(limits, second, row["device"])

    _each(workers, rows, fill)
    _compare(rows, blocks)


def _prefixed(cost: dict[str, int]) -> dict[str, float]:
    return {f"step_{name}": float(value) for name, value in cost.items()}


def _against_limits(limits: dict[str, float], second: float, device: str) -> dict[str, Any]:
    compute = limits["step_flops"] / limits["flops"]
    memory = limits["step_bytes"] / limits["bandwidth"]
    peak = next((peak for name, peak in DATASHEET.items() if name in device), None)
    return {
        "flops_per_step": int(limits["step_flops"]),
        "bytes_per_step": int(limits["step_bytes"]),
        "ceilings": {"flops": limits["flops"], "bandwidth": limits["bandwidth"]},
        "floor_seconds": max(compute, memory),
        "floor_bound": "compute" if compute > memory else "memory",
        "mfu_datasheet": limits["step_flops"] / second / peak if peak else None,
        "mfu_measured": compute / second,
    }


def _compare(rows: dict[str, dict[str, Any]], blocks: dict[str, list[float]]) -> None:
    """The ratio of jdl to the fastest peer whose parity holds."""
    valid = {
        name: row["step_seconds"]["median"]
        for name, row in rows.items()
        if name != "jdl" and "error" not in row and row["parity"]["passed"]
    }
    if "error" in rows["jdl"] or not valid:
        return
    best = min(valid, key=lambda name: valid[name])
    rows["jdl"] |= {"best_peer": best, "ratio_to_best_peer": ratio(blocks["jdl"], blocks[best])}
    for name in valid:
        rows[name]["ratio_of_jdl"] = ratio(blocks["jdl"], blocks[name])
