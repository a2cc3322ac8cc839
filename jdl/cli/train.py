"""The commands that train: `jdl train` and `jdl reproduce`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from jdl.errors import UserError


def train(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    workdir: Path | None = None,
    seeds: int | None = None,
    vectorize: Literal["auto", "always", "never"] = "never",
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Train an experiment. Killed at any moment, the same command goes on from the last checkpoint.

    Any field of the experiment can be set by its path: --epochs 3 --model.widths 256 128
    --optimizer sgd --optimizer.momentum 0.9 --hooks.3.every 100 --strategy fully_sharded.
    Fields that hold one of jdl's dataclasses take another one by name. A dash and an underscore
    are alike. `jdl train EXPERIMENT --help` lists the fields with their meaning.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        workdir: the run directory (default: runs/NAME-DATE); one that holds a run goes on.
        seeds: train with that many seeds, in DIR/seed-0, ..., and write DIR/summary.json.
        vectorize: train the seeds together, in one compiled step.
        distributed: join the processes that Slurm, Open MPI, Kubernetes or a TPU pod started.
        coordinator: HOST:PORT of process 0, to join processes by hand.
        processes: how many there are.
        process: which this is, from 0.
    """
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    if vectorize != "never" and seeds is None:
        raise UserError("--vectorize is for several runs: say how many by --seeds")
    if distributed or coordinator:
        if workdir is None:
            raise UserError("several processes need one --workdir that all of them can reach")
        import jax

        jax.distributed.initialize(coordinator, processes, process)
    file = load(experiment)
    changed = override(file.experiment, changes or {})
    workdir = workdir or _dated(Path("runs") / file.name)
    if seeds is None:
        from jdl.trainer.api import train

        run = train(changed, workdir, file=file, overrides=changes)
        for split, metrics in run.result["metrics"].items():
            run.print(score_line(split, metrics))
        for name, signature in run.result.get("signatures", {}).items():
            run.print(f"{name:<10} {signature}")
        run.print(f"{run.result['seconds']:.1f} s; {workdir} holds the run")
    else:
        from jdl.sweeps.seeds import train_seeds

        summary = train_seeds(
            changed, seeds, workdir, file=file, overrides=changes, vectorize=vectorize
        )
        for split, metrics in summary["metrics"].items():
            for name, spread in metrics.items():
                shown = "  ".join(f"{key} {value:.4f}" for key, value in spread.items())
                print(f"{split:<10} {name:<10} {shown}")
        print(f"{summary['seconds']['mean']:.1f} s a run; {workdir}/summary.json")


def reproduce(
    directory: Annotated[Positional[Path | None], arg(metavar="DIR")] = None,
    /,
    all: bool = False,
    workdir: Path | None = None,
    tolerance: float = 0.005,
    experiment: Path | None = None,
) -> int:
    """Run a finished run again elsewhere and say what differs.

    Exit code 0 where the parameters are equal bit for bit; or where versions, devices or flags
    differ and every metric is within the tolerance. Runs the directory's experiment.py: trust a
    run directory as you would a script.

    Args:
        directory: a run directory.
        all: run every experiment instead, with the seeds of its Expect: line, against that line.
        workdir: where to run (default: beside the directory, or runs/reproduce-DATE).
        tolerance: largest difference of a metric.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis import reproduce as again

    if all == (directory is not None):
        raise UserError("reproduce takes either a run directory or --all")
    if directory is None:
        failed = 0
        for check in again.reproduce_all(workdir or _dated(Path("runs") / "reproduce")):
            kept = abs(check.reached - check.promised) <= tolerance
            failed += not (check.note or kept)
            numbers = f"{check.metric} {check.reached:.4f}, promised {check.promised:.4f}"
            verdict = f"skipped: {check.note}" if check.note else numbers
            print(
                f"{check.name}: {verdict}{'' if check.note or kept else '  NOT KEPT'}", flush=True
            )
        return 1 if failed else 0
    target = workdir or _dated(directory.with_name(f"{directory.name}-again"))
    found = again.reproduce(directory, target, experiment)
    for name, (old, new) in found.metrics.items():
        print(f"{name}: {old!r} recorded, {new!r} now")
    print("parameters: " + ("equal, bit for bit" if found.equal else "not equal"))
    for line in found.surroundings:
        print(f"differs: {line}")
    return 0 if found.within(tolerance) else 1


def _dated(path: Path) -> Path:
    """The path with the time appended, which no run has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    dated, count = path.with_name(f"{path.name}-{stamp}"), 1
    while dated.exists():
        count += 1
        dated = path.with_name(f"{path.name}-{stamp}-{count}")
    return dated


def score_line(split: str, metrics: Mapping[str, float]) -> str:
    """The scores of a split for people."""
    return f"{split:<10} " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
