"""Kills workers of one search with `kill -9`, restarts some, and checks the result.

    python tests/sweeps/search/kill_workers.py --workers 4 --kills 2 --restarts 1 --points 12
    python tests/sweeps/search/kill_workers.py --storage sqlite

Each worker is the same command on the same storage. At the end every point of the grid must be
complete, exactly once and in a directory of its own, whose steps were each done by one worker after
the other. Exits with 1 where that is not so.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

EXPERIMENT = '''"""Two clouds, classified slowly enough for a kill to hit."""

import os
import time
from dataclasses import dataclass

import numpy as np

from jdl import Experiment
from jdl.data import Arrays
from jdl.hooks import Checkpoint, Evaluate, Hook, Callback
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.sweeps.search import Choice, Int


@dataclass(frozen=True, kw_only=True)
class Slow(Hook):
    """Takes a while for each step, and notes whose it was.

    Waits at step 35 while the file `hold` is there, so that a worker to be killed is at work.
    """

    def build(self, run):
        return _Slow(run)


class _Slow(Callback):
    def __init__(self, run):
        self._path = run.workdir / "steps.txt"
        self._hold = run.workdir.parents[2] / "hold"

    def __call__(self, event):
        with self._path.open("a") as file:
            file.write(f"{event.step} {os.getpid()}\\n")
        time.sleep(0.02)
        while event.step == 35 and self._hold.exists():
            time.sleep(0.02)


generator = np.random.default_rng(0)
label = generator.integers(0, 2, 80)
image = generator.normal(size=(80, 3)) + label[:, None]
experiment = Experiment(
    model=MLP(widths=(), features=2),
    data=Arrays({"train": {"image": image, "label": label}}, validation_fraction=0.2),
    optimizer=SGD(0.1),
    strategy=Single(),
    hooks=(Evaluate(every=10), Checkpoint(every=5), Slow()),
    steps=40,
    batch_size=8,
)
space = {"seed": Int(1, POINTS)}
'''


def start(folder: Path, storage: str | None, index: int) -> subprocess.Popen[bytes]:
    """One worker of the search in a folder."""
    words = ["tune", str(folder / "clouds.py"), "--sampler", "grid"]
    words += ["--workdir", str(folder / "study"), *(["--storage", storage] if storage else [])]
    with (folder / f"worker-{index}.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jdl", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def begun(folder: Path) -> set[int]:
    """The processes that have done a step."""
    paths = (folder / "study" / "trials").glob("*/steps.txt")
    return {int(line.split()[1]) for path in paths for line in path.read_text().splitlines()}


def kill(folder: Path, workers: Sequence[subprocess.Popen[bytes]], draw: random.Random) -> bool:
    """Kills one of the workers a while after it began; False where all ended before."""
    wanted = draw.choice(workers)
    while wanted.pid not in begun(folder):
        if wanted.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(draw.random())
    if wanted.poll() is not None:
        return False
    os.killpg(wanted.pid, signal.SIGKILL)
    wanted.wait()
    return True


def faults(folder: Path, points: int, storage: str | None) -> list[str]:
    """What is wrong with a search that has ended, in words."""
    import optuna

    from jdl.sweeps.search.samplers import quiet_optuna
    from jdl.sweeps.search.study import open_storage

    study_folder, found = folder / "study", []
    with quiet_optuna():
        study = optuna.load_study(study_name="clouds", storage=open_storage(storage, study_folder))
    trials = study.get_trials()
    seeds = sorted(trial.params["seed"] for trial in trials if trial.state.name == "COMPLETE")
    if seeds != list(range(1, points + 1)):
        found.append(f"complete are the points {seeds}, not 1 to {points}")
    if len(trials) != points:
        found.append(f"there are {len(trials)} trials of {points} points")
    rows = [json.loads(line) for line in (study_folder / "study.jsonl").read_text().splitlines()]
    for trial in trials:
        directory = study_folder / "trials" / f"{trial.number:04d}"
        result = json.loads((directory / "result.json").read_text())
        if result["metrics"]["validation"]["accuracy"] != trial.value:
            found.append(f"trial {trial.number} is not worth what its run says")
        owners = [line.split()[1] for line in (directory / "steps.txt").read_text().splitlines()]
        changes = sum(a != b for a, b in itertools.pairwise(owners))
        if changes >= len(set(owners)):
            found.append(f"trial {trial.number} was run by several at once")
    if [row["value"] for row in rows] != [trial.value for trial in trials]:
        found.append("study.jsonl does not hold the study")
    return found


def check(
    folder: Path, *, workers: int, kills: int, restarts: int, points: int, sqlite: bool, seed: int
) -> list[str]:
    """Runs all checks and returns the failures."""
    (folder / "clouds.py").write_text(EXPERIMENT.replace("POINTS", str(points)))
    storage = f"sqlite:///{folder}/study.db" if sqlite else None
    draw, landed, hold = random.Random(seed), 0, folder / "hold"
    hold.touch()
    alive = [start(folder, storage, index) for index in range(workers)]
    for index in range(kills):
        landed += kill(folder, [each for each in alive if each.poll() is None] or alive, draw)
        if index < restarts:
            alive.append(start(folder, storage, workers + index))
    hold.unlink()
    codes = [each.wait() for each in alive]
    found = faults(folder, points, storage)
    if landed < kills:
        found.append(f"only {landed} of {kills} kills hit a worker that was at work")
    if sorted(codes) != sorted([-signal.SIGKILL] * landed + [0] * (len(codes) - landed)):
        logs = [path.read_text()[-300:] for path in sorted(folder.glob("worker-*.txt"))]
        found.append(f"exit codes {codes}: {logs}")
    print(f"{points} points, {len(alive)} workers, {landed} killed, {restarts} started again")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4, help="at the beginning")
    parser.add_argument("--kills", type=int, default=2, help="of them")
    parser.add_argument("--restarts", type=int, default=1, help="after the first kills")
    parser.add_argument("--points", type=int, default=12, help="of the grid")
    parser.add_argument("--storage", choices=["journal", "sqlite"], default="journal")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = check(
            Path(scratch), workers=given.workers, kills=given.kills, restarts=given.restarts,
            points=given.points, sqlite=given.storage == "sqlite", seed=given.seed,
        )  # fmt: skip
    for fault in found:
        print(f"FAILED: {fault}")
    print("every point is complete, exactly once" if not found else "not so")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
