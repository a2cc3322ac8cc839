"""Repeats recorded runs and compares the results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdl.config.experiment_file import available, expectation, load
from jdl.data.splits import Splits
from jdl.errors import UserError
from jdl.files import RunDirectory, read_json
from jdl.sweeps.seeds import train_seeds
from jdl.trainer import record
from jdl.trainer.api import train
from jdl.trainer.record import read_run


@dataclass(frozen=True)
class Comparison:
    """A repeated run compared with the recorded one."""

    workdir: Path  # of the repeated run
    equal: bool  # whether the parameters are equal bit for bit
    metrics: dict[str, tuple[float, float]]  # recorded and new value, by `split name`
    surroundings: list[str]  # differing versions, devices, flags and data, as `path: old -> new`

    def within(self, tolerance: float) -> bool:
        """Whether the run counts as reproduced.

        All metrics must agree within `tolerance`, and the parameters bit for bit unless versions,
        devices or flags differ.
        """
        close = all(abs(new - old) <= tolerance for old, new in self.metrics.values())
        return close and (self.equal or bool(self.surroundings))


def reproduce(workdir: Path, target: Path, path: Path | None = None) -> Comparison:
    """Repeats a finished run in another directory and compares the results.

    Raises:
      UserError: the run never finished, or its data is missing.
    """
    recorded = read_run(workdir, path)
    old = RunDirectory(workdir).read_result()
    if old is None:
        raise UserError(f"{workdir} has no result.json: the run has not finished")
    unread = set() if "test" in old["metrics"] else {"test"}  # a trial of a search never reads it
    new = train(
        recorded.experiment, target, file=recorded.file, overrides=recorded.overrides,
        data=Splits(recorded.experiment.data, exclude=unread),
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
    """An experiment's metric and its `Expect:` line; `note` is the reason it was not run."""

    name: str
    metric: str = ""
    expected: float = 0.0
    reached: float = 0.0
    note: str = ""


def reproduce_all(target: Path) -> Iterator[Check]:
    """Runs every experiment that has an `Expect:` line, with the number of seeds in that line."""
    for name, path in available().items():
        expected = expectation(path)
        if expected is None:
            yield Check(name, note="its docstring has no Expect: line")
            continue
        file = load(path)
        try:
            file.experiment.data.splits()
        except UserError as error:
            yield Check(name, note=str(error))
            continue
        summary = train_seeds(file.experiment, expected.seeds, target / name, file=file)
        split, metric = expected.metric.split()
        reached = _find(summary["metrics"], split, metric)
        yield Check(name, expected.metric, expected.mean, reached)


def _find(metrics: Mapping[str, Any], split: str, name: str) -> float:
    if name not in metrics.get(split, {}):
        raise UserError(f"an Expect: line names {split} {name}, which its run does not report")
    return metrics[split][name]["mean"]
