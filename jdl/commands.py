"""The commands of `jdl`, as functions whose arguments tyro reads from the command line."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from jdl.errors import UserError
from jdl.generation.commands import generate
from jdl.report.commands import compare, report


def train(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    workdir: Path | None = None,
    seeds: int | None = None,
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
        distributed: join the processes that Slurm, Open MPI, Kubernetes or a TPU pod started.
        coordinator: HOST:PORT of process 0, to join processes by hand.
        processes: how many there are.
        process: which this is, from 0.
    """
    from jdl.experiment import load
    from jdl.overrides import override

    if distributed or coordinator:
        if workdir is None:
            raise UserError("several processes need one --workdir that all of them can reach")
        import jax

        jax.distributed.initialize(coordinator, processes, process)
    file = load(experiment)
    changed = override(file.experiment, changes or {})
    workdir = workdir or _dated(Path("runs") / file.name)
    if seeds is None:
        from jdl.training import train

        run = train(changed, workdir, file=file, overrides=changes)
        for split, metrics in run.result["metrics"].items():
            run.say(_scores(split, metrics))
        for name, signature in run.result.get("signatures", {}).items():
            run.say(f"{name:<10} {signature}")
        run.say(f"{run.result['seconds']:.1f} s; {workdir} holds the run")
    else:
        from jdl.seeds import train_seeds

        summary = train_seeds(changed, seeds, workdir, file=file, overrides=changes)
        for split, metrics in summary["metrics"].items():
            for name, spread in metrics.items():
                shown = "  ".join(f"{key} {value:.4f}" for key, value in spread.items())
                print(f"{split:<10} {name:<10} {shown}")
        print(f"{summary['seconds']['mean']:.1f} s a run; {workdir}/summary.json")


def evaluate(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    /,
    split: str = "test",
    experiment: Path | None = None,
) -> None:
    """Score a run on a whole split, with the weights that it ended with.

    Runs the directory's experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        split: train, validation or test.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.reproduce import read_run
    from jdl.training import open_run

    recorded = read_run(directory, experiment)
    run = open_run(directory, recorded.experiment, recorded.file.name)
    scores, judgement = run.score(split)
    signatures = {"signatures": dict(judgement.signatures)} if judgement else {}
    print(json.dumps({"split": split, **scores, **signatures}))


def predict(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(at least one)")
    ],
    /,
    experiment: Path | None = None,
) -> int:
    """Predict from images, CSV files or texts; each example becomes a line of JSON.

    A file is read as the run's data set reads its own: an image is one example; a table holds one
    a row, and needs the input columns alone; a text file is one text, a CSV file has a column of
    them; of a series, what follows its last row is forecast. A file that cannot be used is named,
    the others go on, and the exit code is 1, or 2 where none was left. Runs the directory's
    experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        files: to predict from.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.predict import open_to_predict, predict_files
    from jdl.reproduce import read_run

    if not files:
        raise UserError("predict needs at least one FILE (`jdl predict --help` says more)")
    recorded = read_run(directory, experiment)
    run = open_to_predict(directory, recorded.experiment, recorded.file.name)
    reader = run.experiment.data.reader()
    failed = []

    def complain(error: UserError) -> None:
        failed.append(error)
        print(f"jdl: {error}", file=sys.stderr)

    for line in predict_files(run, reader, files, complain):
        print(json.dumps(line), flush=True)
    return min(len(failed), 1) + (len(failed) == len(files))


def translate(
    directory: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    text: tuple[str, ...] = (),
    beams: int = 4,
    alpha: float = 0.6,
    experiment: Path | None = None,
) -> None:
    """Translate texts, or the lines of the standard input, by the model of a run.

    Each becomes a line. Runs the directory's experiment.py: trust a run directory as you would a
    script.

    Args:
        directory: a run directory.
        text: to translate, one or several; none: each line of the standard input.
        beams: beginnings that are kept as a translation is searched for; 1 is quickest.
        alpha: power of the penalty on length; more of it favours longer translations.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.predict import check_translates, open_to_predict, translate
    from jdl.reproduce import read_run

    recorded = read_run(directory, experiment)
    check_translates(directory, recorded.experiment)
    task = dataclasses.replace(recorded.experiment.task, beams=beams, alpha=alpha)
    changed = dataclasses.replace(recorded.experiment, task=task)
    run = open_to_predict(directory, changed, recorded.file.name)
    for line in translate(run, text or (line.rstrip("\r\n") for line in sys.stdin)):
        print(" ".join(line.split("\n")), flush=True)


def export(
    directory: Annotated[Positional[Path], arg(metavar="RUN")],
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    experiment: Path | None = None,
) -> None:
    """Write a run's prediction, weights included, as StableHLO, which JAX runs without jdl.

    A file that holds an earlier export is replaced; any other is left alone. Runs the directory's
    experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        file: to write, such as digits.stablehlo.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.export import check_target, exported, signature, write
    from jdl.predict import open_to_predict
    from jdl.reproduce import read_run

    check_target(file)
    recorded = read_run(directory, experiment)
    run = open_to_predict(directory, recorded.experiment, recorded.file.name)
    if not run.result:
        print(f"{directory} is not finished: this is its newest checkpoint", file=sys.stderr)
    function = exported(run)
    write(file, function)
    print(f"{file}: {signature(function)}")


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
    from jdl import reproduce as again

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


def find_lr(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    png: Path | None = None,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Suggest a learning rate: train a few steps at ever higher ones and see where the loss falls.

    The range test of Smith (2017). Nothing is saved. Fields are set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        low: the first learning rate.
        high: the last one, unless the loss diverges before.
        steps: optimizer steps.
        png: draw the loss by the rate into this file.
    """
    from jdl import find
    from jdl.experiment import load
    from jdl.overrides import override

    if png is not None:
        find.figure()  # a missing package is said now, not after the test
    changed = override(load(experiment).experiment, changes or {})
    curve = find.find_lr(changed, low=low, high=high, steps=steps)
    print("learning rate  loss, averaged")
    for rate, loss in list(zip(curve.rates, curve.smoothed, strict=True))[:: max(1, steps // 10)]:
        print(f"{rate:13.1e}  {loss:.4g}")
    if len(curve.rates) < steps:
        print(f"{curve.rates[-1]:13.1e}  the loss diverges")
    if png is not None:
        find.draw(curve, png)
    if curve.suggestion is None:
        raise UserError(f"between {low:g} and {high:g} the loss does not fall for long enough")
    suggestion = f"{curve.suggestion:.1e}".replace("e-0", "e-")
    print(f"--optimizer.learning-rate {suggestion}")


def find_batch(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    largest: int = 4096,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Suggest a batch size: train a few steps with ever larger ones and time them.

    The smallest that reaches 95 % of the best throughput is suggested. Nothing is saved. Fields
    are set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        largest: batch size.
    """
    from jdl import find
    from jdl.experiment import load
    from jdl.overrides import override

    changed = override(load(experiment).experiment, changes or {})

    def show(row: find.BatchRow) -> None:
        print(
            f"batch size {row.batch_size}: {row.items_per_second:.1f} items/s, "
            f"{row.seconds * 1e3:.3f} ms a step, {row.memory / 2**20:.0f} MiB at most",
            flush=True,
        )

    search = find.find_batch(changed, largest=largest, report=show)
    print(search.ended)
    print(f"--batch-size {search.suggestion}")


def plan(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    devices: int | None = None,
    memory: str | None = None,
    flops: float | None = None,
    json_: Annotated[bool, arg(name="json")] = False,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Predict parameters, memory and time before anything is compiled, and what would fit.

    A table says for each strategy, precision and remat what lies on a device, and the largest
    batch that fits. Times are those of the matrix products alone: no step takes less. Fields are
    set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        devices: how many there will be (default: those of the strategy, here).
        memory: of each, such as 80GB or 16GiB (default: that of a device here).
        flops: floating-point operations a second of each, such as 989e12 (default: measured here).
        json_: print JSON.
    """
    from jdl import plan as planning
    from jdl.experiment import load
    from jdl.overrides import override

    limit = None if memory is None else planning.parse_bytes(memory)
    changed = override(load(experiment).experiment, changes or {})
    found = planning.plan(changed, devices=devices, memory=limit, rate=flops)
    if json_:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for line in planning.lines(found):
        print(line)


def list_experiments() -> None:
    """List the experiments: what, data, expected result and time."""
    from jdl.experiment import available, documentation, expectation, load

    rows = []
    for name, path in available().items():
        try:
            data = load(path).experiment.data.describe()
        except UserError as error:
            data = f"({error})"
        promise = expectation(path)
        result = f"{promise.metric} {promise.mean}" if promise else "-"
        seconds = f"{promise.seconds:g} s" if promise else "-"
        rows.append((name, documentation(path).split("\n")[0], data, result, seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    /,
    from_: Annotated[Path | None, arg(name="from")] = None,
    data_dir: Path | None = None,
) -> None:
    """Write a data set as array_record, in TensorFlow Datasets' layout and without TensorFlow.

    For mnist, fashion_mnist, cifar10, imdb_reviews, cats_vs_dogs, tiny_shakespeare and multi30k.

    Args:
        name: of the data set.
        from_: the original files, where they are at hand; else they are downloaded.
        data_dir: where data sets lie (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
    """
    from jdl.data.prepare import prepare

    print(f"{prepare(name, raw=from_, data_dir=data_dir)} holds {name}")


COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "generate": generate,
    "translate": translate,
    "export": export,
    "reproduce": reproduce,
    "report": report,
    "compare": compare,
    "find-lr": find_lr,
    "find-batch": find_batch,
    "plan": plan,
    "list": list_experiments,
    "prepare": prepare,
}


def _dated(path: Path) -> Path:
    """The path with the time appended, which no run has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    dated, count = path.with_name(f"{path.name}-{stamp}"), 1
    while dated.exists():
        count += 1
        dated = path.with_name(f"{path.name}-{stamp}-{count}")
    return dated


def _scores(split: str, metrics: Mapping[str, float]) -> str:
    return f"{split:<10} " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
