"""Kills training runs with `kill -9` at random and compares them with an uninterrupted run.

    python tests/kill_resume.py --runs 20 --kills 3 --experiment digits_cnn --every 20

One run is trained without a break. Each of the others gets its command again after every kill.
A quarter of the kills hit a process as it starts up; the others are spread over the rest of the
training, its saves, evaluations and last moments. At the end parameters, optimizer state, key, step
and hook states of the last checkpoint, `params_sha256` and all metric rows but their timing must
be equal bit for bit; at least half of the restarts must have resumed from a step above 0; and no
kill may have cost more steps than lie between two saves. Exits with 1 where that is not so.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STARTUP_SHARE = 0.25
"""Of the kills, how many hit a process before it trains."""

SHORTEST_LIFE = 0.3
"""Seconds that any process lives: less than importing jax takes."""

POLL = 0.005
"""Seconds between two looks at a process."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, again and again."""

    experiment: str
    every: int  # steps between saves
    extra: tuple[str, ...] = ()  # further words of the command

    def command(self, workdir: Path) -> list[str]:
        """A row per step, so that the rows of a killed run tell how far it had come."""
        options = ["--hooks.3.every", str(self.every), "--runtime.log-every", "1", *self.extra]
        words = ["train", self.experiment, "--workdir", str(workdir), *options]
        return [sys.executable, "-m", "jdl", *words]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The run never stopped."""

    workdir: Path
    startup: float  # seconds until its first step was done
    training: float  # seconds from there to its end
    steps: int


@dataclass(kw_only=True)
class Report:
    """One killed run."""

    kills: int = 0  # each is followed by a restart
    resumed: list[int] = field(default_factory=list)  # where restarts began, if they came so far
    lost: list[int] = field(default_factory=list)  # steps that had to be done again, per resumption
    faults: list[str] = field(default_factory=list)


class Process:
    """A training process in a group of its own, and its output so far."""

    def __init__(self, job: Job, workdir: Path) -> None:
        self.log, self.workdir = workdir.with_suffix(f".{time.time_ns()}.log"), workdir
        self.begun = time.perf_counter()
        self.finished = (workdir / "result.json").exists()  # before it began: nothing is left
        with self.log.open("w") as out:
            self._process = subprocess.Popen(
                job.command(workdir), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when it is dead."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def output(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace")

    def training(self) -> bool:
        """Whether it has done a step."""
        return re.search(r"^step \d+/", self.output(), re.MULTILINE) is not None

    def step(self) -> int:
        """The last step that it has shown; 0 for none."""
        return max(map(int, re.findall(r"^step (\d+)/", self.output(), re.MULTILINE)), default=0)

    def resumed(self) -> int | None:
        """The step it went on from; 0 where it began anew, None where it did not come so far."""
        found = re.search(r"resuming from step (\d+)", self.output())
        if found:
            return int(found[1])
        return 0 if self.training() else None

    def ended(self) -> bool:
        """Whether it has done everything but leave."""
        return not self.finished and (self.workdir / "result.json").exists()


def train_reference(job: Job, workdir: Path) -> Reference:
    """Trains without a break and takes the time."""
    process = Process(job, workdir)
    started = None
    while process.code() is None:
        if started is None and process.training():
            started = time.perf_counter()
        time.sleep(POLL)
    now = time.perf_counter()
    if process.code() != 0 or started is None:
        raise RuntimeError(f"the reference run failed:\n{process.output()}")
    return Reference(
        workdir=workdir,
        startup=started - process.begun,
        training=now - started,
        steps=json.loads((workdir / "result.json").read_text())["step"],
    )


def train_killed(
    job: Job, workdir: Path, reference: Reference, kills: int, draw: random.Random
) -> Report:
    """Trains with so many kills on the way to the end and compares with the reference."""
    report, begun, left = Report(), 0, kills
    while True:
        process = Process(job, workdir)
        killed = left > 0 and _kill(process, reference, left, draw)
        code = process.wait()
        resumed = process.resumed()
        if resumed is None and code == 0:
            resumed = reference.steps  # the process before had finished
        if resumed is not None and report.kills:
            report.resumed.append(resumed)
            report.lost.append(max(0, begun - resumed))
            begun = 0
        if not killed:
            break
        begun = max(begun, min(steps_begun(workdir, job.every), reference.steps))
        report.kills += 1
        left -= 1
    if code:
        report.faults.append(f"exit code {code}: {process.output()[-500:]}")
    else:
        report.faults += differences(reference.workdir, workdir)
    if max(report.lost, default=0) > job.every:
        report.faults.append(f"a kill cost {max(report.lost)} steps, more than {job.every}")
    return report


def _kill(process: Process, reference: Reference, left: int, draw: random.Random) -> bool:
    """Kills a process at a random moment; False where it ended before.

    With `left` kills to come, this is the first of as many moments spread evenly over what remains.
    """
    moment, target = process.begun, 0
    if process.finished:  # it only imports, and says that nothing is left
        moment += draw.random() * SHORTEST_LIFE
    elif draw.random() < STARTUP_SHARE:
        moment += draw.random() * reference.startup
    else:
        while not (process.training() or process.ended()):
            if process.code() is not None:
                return False
            time.sleep(POLL)
        # A step and not a time: a machine may be faster now than during the reference run.
        resumed, share = process.resumed() or 0, 1 - draw.random() ** (1 / left)
        target = resumed + share * (reference.steps - resumed)
    while (time.perf_counter() < moment or process.step() < target) and not process.ended():
        if process.code() is not None:
            return False
        time.sleep(POLL)
    if process.code() is not None:
        return False
    process.kill()
    return True


def steps_begun(workdir: Path, every: int) -> int:
    """The last step that a dead process can have begun, at most.

    The row of a step is written after the next one was dispatched, and by then no more than two are
    in flight. None is dispatched beyond a step with a save until that save is complete.
    """
    written = max((row["step"] for row in rows(workdir) if row["split"] == "train"), default=0)
    saved = max(checkpoints(workdir), default=0)
    if written % every == 0 and written and saved < written:
        return written
    return min(written + 2, (written // every + 1) * every)


def checkpoints(workdir: Path) -> list[int]:
    """The steps whose checkpoints are complete."""
    found = (workdir / "checkpoints").glob("*/manifest.json")
    return sorted(int(path.parent.name.split(".")[0]) for path in found)


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without `timing` and without a torn last line."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in lines]


def arrays(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every array of a checkpoint by its path: dtype, shape and bytes; read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes the shardings from the checkpoint
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore((checkpoint / "state").resolve())
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found[jax.tree_util.keystr(path)] = (str(array.dtype), array.shape, array.tobytes())
    return found


def newest(workdir: Path) -> Path:
    """The directory of the last checkpoint of a run."""
    found = (workdir / "checkpoints").glob("*/manifest.json")
    return max((p.parent for p in found), key=lambda p: tuple(map(int, p.name.split("."))))


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, in words; empty where nothing does."""
    missing = [f"{path} has no result" for path in (one, other) if not _result(path)]
    if missing:
        return missing
    return [*_differences(one, other)]


def _differences(one: Path, other: Path) -> Iterator[str]:
    for name in ("experiment", "step", "metrics", "params_sha256"):
        if _result(one)[name] != _result(other)[name]:
            yield f"result.json: {name} {_result(one)[name]} became {_result(other)[name]}"
    if json.dumps(rows(one)) != json.dumps(rows(other)):
        pairs = enumerate(zip(rows(one), rows(other), strict=False))
        where = next((i for i, (a, b) in pairs if json.dumps(a) != json.dumps(b)), "end")
        yield f"metrics.jsonl: {len(rows(one))} and {len(rows(other))} rows, first at row {where}"
    if checkpoints(one) != checkpoints(other):
        yield f"checkpoints {checkpoints(one)} became {checkpoints(other)}"
    first, second = arrays(newest(one)), arrays(newest(other))
    for path in sorted({*first, *second}):
        if first.get(path) != second.get(path):
            yield f"the state differs at {path}"
    before, after = (json.loads((newest(p) / "meta.json").read_text()) for p in (one, other))
    for name in sorted({*before, *after}):
        if not name.endswith("seconds") and before.get(name) != after.get(name):
            yield f"meta.json: {name} {before.get(name)} became {after.get(name)}"


def _result(workdir: Path) -> Mapping[str, Any]:
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(
    job: Job, folder: Path, runs: int, kills: int, seed: int = 0, parallel: int = 2
) -> list[str]:
    """Does everything, prints a line per run and a summary, and returns what failed."""
    reference = train_reference(job, folder / "reference")
    print(
        f"reference: {reference.steps} steps, {reference.startup:.1f} s to start and "
        f"{reference.training:.1f} s to train, a save every {job.every}",
        flush=True,
    )

    def one(index: int) -> Report:
        draw = random.Random(f"{seed} {index}")
        report = train_killed(job, folder / f"run-{index}", reference, kills, draw)
        verdict = "equal" if not report.faults else "; ".join(report.faults)
        print(
            f"run {index}: {report.kills} kills, resumed from {report.resumed}, "
            f"lost {report.lost} steps: {verdict}",
            flush=True,
        )
        return report

    with ThreadPoolExecutor(parallel) as pool:
        reports = list(pool.map(one, range(runs)))
    return summarise(reports, kills)


def summarise(reports: Sequence[Report], kills: int) -> list[str]:
    """Prints the last line and returns what failed."""
    failed = [fault for report in reports for fault in report.faults]
    equal = sum(not report.faults for report in reports)
    landed = sum(report.kills for report in reports)
    beyond = sum(step > 0 for report in reports for step in report.resumed)
    lost = max((steps for report in reports for steps in report.lost), default=0)
    print(
        f"{equal} of {len(reports)} equal; {beyond} of {landed} restarts resumed from a step "
        f"above 0; at most {lost} steps lost"
    )
    if landed < kills * len(reports):
        failed.append(f"only {landed} of {kills * len(reports)} kills hit a living process")
    if 2 * beyond < landed:
        failed.append(f"only {beyond} of {landed} restarts resumed from a step above 0")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="killed runs")
    parser.add_argument("--kills", type=int, default=3, help="kills of each")
    parser.add_argument("--experiment", default="digits_cnn", help="name or file")
    parser.add_argument("--every", type=int, default=20, help="steps between saves")
    parser.add_argument("--workdir", type=Path, help="new folder for the runs; kept")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--parallel", type=int, default=2, help="runs at the same time")
    parser.add_argument("extra", nargs="*", help="further words of the command, after --")
    given = parser.parse_args(argv)
    job = Job(experiment=given.experiment, every=given.every, extra=tuple(given.extra))
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.workdir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        failed = check(job, folder, given.runs, given.kills, given.seed, given.parallel)
    print(f"{time.perf_counter() - begun:.0f} s")
    for fault in failed:
        print(f"FAILED: {fault}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
