"""Running a recorded experiment again, and saying what came out differently."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdl.config.experiment_file import ExperimentFile, available, expectation, load
from jdl.config.overrides import flatten, override
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.files import RunDirectory, json_value, read_json
from jdl.sweeps.seeds import train_seeds
from jdl.trainer import record
from jdl.trainer.api import train
from jdl.typing import Json


@dataclass(frozen=True)
class Recorded:
    """What a run directory says about its run."""

    file: ExperimentFile
    experiment: Experiment
    overrides: dict[str, Json]


def read_run(workdir: Path, path: Path | None = None) -> Recorded:
    """The experiment of a run directory, whose `experiment.py` is run like any script.

    Args:
      workdir: the run directory.
      path: the caller's own experiment file, to be used instead.

    Raises:
      UserError: it is no run directory, or its files say different things.
    """
    directory = RunDirectory(workdir)
    if directory.study.exists():
        raise UserError(f"{workdir} holds a search: name a run of it, such as {workdir}/best")
    recorded = directory.read_experiment()
    if path is None and not directory.script.exists():
        raise UserError(
            f"{workdir} holds no experiment.py, since the run was started from Python: name the "
            f"file of its experiment with --experiment"
        )
    file = load(path or directory.script)
    file = dataclasses.replace(file, name=recorded.experiment)
    overrides = read_json(directory.overrides) or {}
    experiment = override(file.experiment, overrides)
    fields = json_value(flatten(experiment))
    if changed := record.differences(recorded.fields, fields):
        raise UserError(
            f"{file.path} no longer gives the settings recorded in {workdir}: {'; '.join(changed)}"
        )
    return Recorded(file, experiment, overrides)


@dataclass(frozen=True)
class Comparison:
    """A run beside the record of an earlier one.

    Attributes:
      workdir: where it was run again.
      equal: whether the parameters are equal bit for bit.
      metrics: recorded and new value of each metric, by `split name`.
      surroundings: what else differs, as `path: old -> new`.
    """

    workdir: Path
    equal: bool
    metrics: dict[str, tuple[float, float]]
    surroundings: list[str]

    def within(self, tolerance: float) -> bool:
        """Whether this counts as reproduced.

        All metrics must be this close; and the parameters equal bit for bit, unless versions,
        devices or flags differ.
        """
        close = all(abs(new - old) <= tolerance for old, new in self.metrics.values())
        return close and (self.equal or bool(self.surroundings))


def reproduce(workdir: Path, target: Path, path: Path | None = None) -> Comparison:
    """Runs a finished run again in another directory and compares the results.

    Raises:
      UserError: the run never finished, or its data is not there.
    """
    recorded = read_run(workdir, path)
    old = RunDirectory(workdir).read_result()
    if old is None:
        raise UserError(f"{workdir} holds no result.json: the run never finished")
    kept_away = set() if "test" in old["metrics"] else {"test"}  # as trials of a search are
    new = train(
        recorded.experiment, target, file=recorded.file, overrides=recorded.overrides,
        data=Splits(recorded.experiment.data, without=kept_away),
    ).result  # fmt: skip
    parts = ("versions", "devices", "flags", "data")
    before, after = (read_json(RunDirectory(each).environment) for each in (workdir, target))
    surroundings = [
        line for part in parts for line in record.differences(before[part], after[part], part)
    ]
    return Comparison(
        target,
        old["params_sha256"] == new["params_sha256"],
        {
            f"{split} {name}": (value, new["metrics"].get(split, {}).get(name, float("nan")))
            for split, metrics in old["metrics"].items()
            for name, value in metrics.items()
        },
        surroundings,
    )


@dataclass(frozen=True)
class Check:
    """An experiment beside the promise in its docstring; `note` says why it was not run."""

    name: str
    metric: str = ""
    promised: float = 0.0
    reached: float = 0.0
    note: str = ""


def reproduce_all(target: Path) -> Iterator[Check]:
    """Runs every experiment that has an `Expect:` line with as many seeds as that names."""
    for name, path in available().items():
        promise = expectation(path)
        if promise is None:
            yield Check(name, note="its docstring has no Expect: line")
            continue
        file = load(path)
        try:
            file.experiment.data.splits()
        except UserError as error:
            yield Check(name, note=str(error))
            continue
        summary = train_seeds(file.experiment, promise.seeds, target / name, file=file)
        split, metric = promise.metric.split()
        reached = _find(summary["metrics"], split, metric)
        yield Check(name, promise.metric, promise.mean, reached)


def _find(metrics: Mapping[str, Any], split: str, name: str) -> float:
    if name not in metrics.get(split, {}):
        raise UserError(f"an Expect: line names {split} {name}, which its run does not report")
    return metrics[split][name]["mean"]
