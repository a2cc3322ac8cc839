"""A worker process that runs one implementation of one workload on command.

It reads requests as JSON lines from standard input and answers each with one on standard output;
whatever a framework prints goes to standard error.
"""

import dataclasses
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trainer import Case, Trainer
from benchmarks.workloads import Workload, augmented, gru, workloads
from jdl.errors import first_line


def main() -> None:
    """Serves requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve = Server().answer
    for line in sys.stdin:
        begun = time.perf_counter()
        try:
            reply: dict[str, Any] = {"value": serve(**json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
        reply["seconds"] = time.perf_counter() - begun
        print(json.dumps(reply), file=answers, flush=True)


class Server:
    """The state that requests act on."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None

    def answer(self, do: str, **arguments: Any) -> Any:
        """Answers a request."""
        known: dict[str, Callable[..., Any]] = {
            "describe": describe,
            "make": make,
            "load": self.load,
            "ceilings": ceilings,
            "cost": cost,
            "peak": self.peak,
            "profile": self.profile,
        }
        if do in known:
            return known[do](**arguments)
        assert self._trainer is not None
        return getattr(self._trainer, do)(**arguments)

    def load(self, implementation: str, folder: str, **chosen: Any) -> str:
        """Builds a trainer; returns the version of its framework."""
        framework, _, variant = implementation.partition("-")
        case = read_case(Path(folder))
        if framework == "jdl":
            import jdl
            from benchmarks import ours, plain

            if variant:
                plain.use(variant.removeprefix("plain_"))
            self._trainer = ours.build(pick(**chosen), case)
            return jdl.__version__
        peer = importlib.import_module(f"benchmarks.peers.{framework}")
        self._trainer = peer.build(case, variant or "default")
        return str(peer.VERSION)

    def profile(self, steps: int) -> dict[str, tuple[float, int]]:
        """Milliseconds and count of each kind of event during some steps of JAX."""
        import jax

        assert self._trainer is not None
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level, options.host_tracer_level = 0, 3
        events: dict[str, tuple[float, int]] = {}
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                self._trainer.run(steps)
            path = next(Path(folder).rglob("*.xplane.pb"))
            planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
            devices = [plane for plane in planes if plane.name.startswith("/device:")]
            for plane in devices or planes:
                for line in plane.lines:
                    for event in line.events:
                        name = _kernel(event) if devices else event.name
                        total, count = events.get(name, (0.0, 0))
                        events[name] = (total + event.duration_ns / 1e6, count + 1)
        return events

    def peak(self) -> int:
        """Peak bytes in use on the accelerator, else by the process."""
        jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        stats = jax.devices()[0].memory_stats() if jax is not None else None
        if stats and "peak_bytes_in_use" in stats:
            return int(stats["peak_bytes_in_use"])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kernel(event: Any) -> str:
    """A kernel's name, with the HLO instruction that launched it."""
    stats = dict(event.stats)
    source = stats.get("tf_op") or stats.get("name") or ""
    return f"{event.name[:70]}  {stats.get('hlo_op', '')}  {source}".strip()


def pick(**key: Any) -> Workload:
    """The workload of this key."""
    every = (*workloads(False), *workloads(True), gru(), augmented(), augmented(256))
    return next(workload for workload in every if workload.key == key)


def describe() -> dict[str, Any]:
    """Describes the machine and jdl's versions."""
    import jax

    from jdl.trainer.environment import versions

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def processor() -> str:
    """The processor's name and number of cores."""
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0].partition(':')[2].strip()}"


def make(folder: str, dtype: str, threads: int, **chosen: Any) -> None:
    """Writes the case for every implementation."""
    from benchmarks import ours

    case = ours.make_case(pick(**chosen), dtype, threads)
    plain = dataclasses.asdict(case)
    arrays = {f"{part}/{k}": v for part in ("params", "arrays") for k, v in plain.pop(part).items()}
    if (noise := plain.pop("noise")) is not None:
        arrays["noise"] = noise
    np.savez(Path(folder) / "case.npz", **arrays)
    (Path(folder) / "case.json").write_text(json.dumps(plain))


def read_case(folder: Path) -> Case:
    """Reads what `make` wrote."""
    plain = json.loads((folder / "case.json").read_text())
    parts: dict[str, dict[str, np.ndarray]] = {"params": {}, "arrays": {}, "noise": {}}
    with np.load(folder / "case.npz") as arrays:
        for name in arrays:
            part, _, path = name.partition("/")
            parts[part][path] = arrays[name]
    return Case(
        **plain, params=parts["params"], arrays=parts["arrays"], noise=parts["noise"].get("")
    )


def cost(folder: str) -> dict[str, int]:
    """FLOPs and minimum memory traffic of a training step, from the plain Flax definition."""
    import jax

    from benchmarks.peers.flax import loss_function
    from jdl.analysis import flops

    function, params, rest, batch = loss_function(read_case(Path(folder)))
    counted = flops.count(jax.value_and_grad(function, has_aux=True), params, rest, batch)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    given = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    # Parameters and both moments of Adam are read and written once, the batch is read.
    return {"flops": counted.flops, "bytes": 6 * size + given}


def ceilings(dtype: str, moved: int) -> dict[str, float]:
    """The machine's current rates of a large matrix product and of a copy.

    On CPUs the copy reads and writes as many bytes as a step moves at least, again and again: what
    fits into a cache is not read from memory. On accelerators it is large.
    """
    import jax
    import jax.numpy as jnp

    large = jax.default_backend() != "cpu"
    side, length = (8192, 1 << 28) if large else (2048, min(1 << 25, max(moved // 8, 1)))
    repeats = 1 if large else max(1, (1 << 25) // length)
    kind = jnp.bfloat16 if dtype == "bf16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (side, side), kind)
    x = jax.random.normal(jax.random.key(1), (length,))

    def best(function: Callable[[Any], Any], given: Any) -> float:
        compiled, taken = jax.jit(function), []
        jax.block_until_ready(compiled(given))
        for _ in range(5):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(given))
            taken.append(time.perf_counter() - begun)
        return min(taken)

    def copy(x: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x + 1, x)

    return {
        "flops": 2 * side**3 / best(lambda a: a @ a, a),
        "bandwidth": 2 * x.nbytes * repeats / best(copy, x),
    }


if __name__ == "__main__":
    main()
