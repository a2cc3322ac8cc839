"""`jdl train`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jdl.cli.arguments import ExperimentName, Overrides
from jdl.errors import UserError
from jdl.metrics import without_duplicates


def train(
    experiment: ExperimentName,
    /,
    workdir: Path | None = None,
    seeds: int | None = None,
    vectorize: Literal["auto", "always", "never"] = "never",
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    overrides: Overrides = None,
) -> None:
    """Train an experiment, or resume it from the last checkpoint in --workdir.

    Any field of the experiment is set by its path: --epochs 3 --model.widths 256 128
    --optimizer sgd --optimizer.momentum 0.9 --hooks.3.every 100 --strategy fully_sharded.
    A field that holds one of jdl's dataclasses takes the name of another. A dash and an underscore
    are alike. `jdl train EXPERIMENT --help` lists the fields with their meaning.

    Args:
        workdir: the run directory (default: runs/NAME-DATE); an unfinished run in it is resumed.
        seeds: train this many seeds in DIR/seed-0, ... and write DIR/summary.json.
        vectorize: train the seeds together in one vmapped step.
        distributed: join the processes that Slurm, Open MPI, Kubernetes or a TPU pod started.
        coordinator: HOST:PORT of process 0, to start processes by hand.
        processes: number of processes.
        process: index of this process, from 0.
    """
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    if vectorize != "never" and seeds is None:
        raise UserError("--vectorize trains several seeds: set their number by --seeds")
    if distributed or coordinator:
        if workdir is None:
            raise UserError("several processes need one --workdir that all of them can reach")
        import jax

        jax.distributed.initialize(coordinator, processes, process)
    file = load(experiment)
    changed = override(file.experiment, overrides or {})
    workdir = workdir or dated(Path("runs") / file.name)
    if seeds is None:
        from jdl.trainer.api import train

        print_result(train(changed, workdir, file=file, overrides=overrides), workdir)
        return
    from jdl.sweeps.seeds import train_seeds

    summary = train_seeds(
        changed, seeds, workdir, file=file, overrides=overrides, vectorize=vectorize
    )
    for split, metrics in summary["metrics"].items():
        for name, spread in metrics.items():
            shown = "  ".join(f"{key} {value:.4f}" for key, value in spread.items())
            print(f"{split:<10} {name:<10} {shown}{_remark(split, summary)}")
    print(f"{summary['seconds']['mean']:.1f} s a run; {workdir}/summary.json")


def print_result(run: Any, workdir: Path) -> None:
    """Prints the scores, signatures and seconds of a finished run."""
    for split, metrics in run.result["metrics"].items():
        run.print(_score_line(split, metrics) + _remark(split, run.result))
    for name, signature in run.result.get("signatures", {}).items():
        run.print(f"{name:<10} {signature}")
    run.print(f"{run.result['seconds']:.1f} s; {workdir} holds the run")


def _score_line(split: str, metrics: Mapping[str, float]) -> str:
    shown = without_duplicates(metrics)
    return f"{split:<10} " + "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


def _remark(split: str, result: Mapping[str, Any]) -> str:
    """Marks training metrics that are means over the steps of the last epoch."""
    running = split == "train" and result.get("train_metrics") == "running"
    return "  (running mean of the last epoch)" if running else ""


def dated(path: Path) -> Path:
    """Appends the time, and a number if such a path exists."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    dated, count = path.with_name(f"{path.name}-{stamp}"), 1
    while dated.exists():
        count += 1
        dated = path.with_name(f"{path.name}-{stamp}-{count}")
    return dated
