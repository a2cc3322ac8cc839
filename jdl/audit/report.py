"""Scores by group, with intervals and tests: the audit of a classifier."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.audit.groups import Column, as_column, intersection, read_arrays, read_columns
from jdl.audit.rates import PROPORTIONS, RATES, SCORES, Sums, features
from jdl.audit.resampling import bootstrap_sums, holm, interval, permutation_p_value, spread
from jdl.audit.thresholds import Criterion, Thresholds, decide, fit_thresholds, rate_gap
from jdl.data import Table
from jdl.errors import UserError, nearest
from jdl.tasks import AdversarialClassification, BinaryClassification, Classification
from jdl.trainer.run import Run
from jdl.typing import Json

GAPS: Mapping[str, tuple[str, ...]] = {
    "demographic_parity": ("selection_rate",),
    "equal_opportunity": ("true_positive_rate",),
    "equalized_odds": ("true_positive_rate", "false_positive_rate"),
    "predictive_parity": ("precision",),
    "calibration": ("calibration_gap",),
}
"""Criteria (Barocas et al., 2023), and the rates whose largest difference each is."""


@dataclass(frozen=True)
class Value:
    """A score with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """The largest difference of a score between two groups.

    Attributes:
      difference: with its interval.
      lowest, highest: the groups that differ most.
      p_value: of a permutation test that all groups are equal, adjusted for the number of tests
        (Holm, 1979); NaN where no proportion is tested.
    """

    difference: Value
    lowest: str
    highest: str
    p_value: float


@dataclass(frozen=True)
class Grouping:
    """The scores by groups of one column, or of the intersections of several.

    Attributes:
      column: its name, or names.
      counts: number of examples by group.
      scores: by name of the score, then by group; rates of class C are named `RATE[C]`.
      gaps: by criterion, as `demographic_parity[C]`, or score.
      small: groups of fewer examples than the least, which have counts alone.
    """

    column: str
    counts: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Value]]
    gaps: Mapping[str, Gap]
    small: tuple[str, ...]

    @property
    def worst_group(self) -> str:
        """The group of the lowest accuracy."""
        return self.gaps["accuracy"].lowest


@dataclass(frozen=True)
class Audit:
    """The scores of a classifier, overall and by group.

    Attributes:
      split: that was predicted; empty if not known.
      classes: names of the classes whose rates are compared.
      examples: their number.
      overall: scores of all examples.
      groupings: by column, and of the intersections of all.
      settings: `min_count`, `replicas`, `confidence`, `permutations` and `seed`.
      inputs: group columns that the model reads, and so needs at prediction time.
      thresholds: of each group, fitted after training, if asked for.
    """

    split: str
    classes: tuple[str, ...]
    examples: int
    overall: Mapping[str, Value]
    groupings: tuple[Grouping, ...]
    settings: Mapping[str, Json]
    inputs: tuple[str, ...] = ()
    thresholds: Thresholds | None = None

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON object to write."""
        return dataclasses.asdict(self)


def audit(
    run: Run,
    group: str | Sequence[str],
    split: str = "test",
    *,
    positive: str = "",
    thresholds: Criterion | None = None,
    **settings: Any,
) -> Audit:
    """Audits a classifier's predictions for a split, by groups of its examples.

    Args:
      run: of the task `Classification` or `BinaryClassification`.
      group: column of the groups, or several: arrays of the examples, such as `Table.keep`, or any
        column of the table's file. The model need not read them.
      split: of the data.
      positive: name of the class whose rates are compared; empty: of two classes the second, of
        more all.
      thresholds: a criterion for which a threshold of each group is fitted on the calibration
        split, of two classes; of several columns for their intersections.
      **settings: of `audit_predictions`.

    Raises:
      UserError: the run classifies nothing, or has no such split, column or class.
    """
    check_classifier(run)
    group = (group,) if isinstance(group, str) else tuple(group)
    columns, data = read_columns(run, split, group), run.experiment.data
    labels, probabilities = predict_split(run, split)
    found = _audit(labels, probabilities, columns, data.output_names(), positive, split, **settings)
    known = [each["name"] for each in data.fitted()["features"]] if isinstance(data, Table) else []
    inputs = tuple(name for name in group if name in (*known, *run.experiment.task.input_names))
    found = dataclasses.replace(found, inputs=inputs)
    if thresholds is None:
        return found
    predicted = labels, probabilities, intersection(columns)
    return dataclasses.replace(found, thresholds=_thresholds(run, group, predicted, thresholds))


def _thresholds(
    run: Run,
    group: Sequence[str],
    predicted: tuple[np.ndarray, np.ndarray, Column],
    criterion: Criterion,
) -> Thresholds:
    """Fits thresholds on the calibration split, and applies them to predictions.

    Raises:
      UserError: there is no such split, or there are more than two classes.
    """
    labels, p, column = predicted
    split = "calibration"
    if split not in run.data.names:
        raise UserError(
            f"thresholds are fitted on a calibration split, which {run.workdir} has not: train it "
            f"with data.calibration_fraction=0.1"
        )
    if p.shape[1] != 2:
        raise UserError(f"thresholds of groups are for two classes, not for {p.shape[1]}")
    known, scores = predict_split(run, split)
    fitted = fit_thresholds(
        known, scores[:, 1], intersection(read_columns(run, split, group)), criterion
    )
    decisions = p[:, 1] > 0.5, decide(p[:, 1], column, fitted)
    accuracy = [float((each == labels).mean()) for each in decisions]
    gap = [rate_gap(labels, each, column, criterion) for each in decisions]
    return Thresholds(
        column.name, criterion, split, fitted, (accuracy[0], accuracy[1]), (gap[0], gap[1])
    )


def audit_predictions(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    class_names: Sequence[str] = (),
    positive: str = "",
    **settings: Any,
) -> Audit:
    """Audits predictions of any origin, by groups of their examples.

    Args:
      labels: classes, (examples,) int.
      probabilities: (examples, classes), or of class 1 of two, (examples,).
      groups: by name of the column, (examples,) words, integers or bools.
      class_names: names of the classes; empty: their numbers.
      positive: as for `audit`.
      **settings: `min_count`, the fewest examples of a group that is scored, 30; `replicas` of the
        stratified bootstrap, 1,000; its `confidence`, 0.95; `permutations` of the tests, 9,999;
        `seed` of both, 0.

    Raises:
      UserError: the arrays differ in length, or a column makes no groups.
    """
    probabilities = as_probabilities(probabilities)
    for name, array in {"probabilities": probabilities, **groups}.items():
        if len(array) != len(labels):
            raise UserError(
                f"{name!r} has {len(array)} rows, and there are {len(labels)} labels: give as many"
            )
    columns = [as_column(name, np.asarray(values)) for name, values in groups.items()]
    return _audit(labels, probabilities, columns, class_names, positive, "", **settings)


def predict_split(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels (examples,) and probabilities (examples, classes) of a split.

    Raises:
      UserError: the run classifies nothing, or has no such split.
    """
    check_classifier(run)
    arrays = read_arrays(run, split)
    return labels_of(run, arrays), as_probabilities(run.predict_rows(arrays))


def check_classifier(run: Run) -> None:
    """Raises a UserError unless a run predicts one class of each example."""
    task = run.experiment.task
    kinds = (Classification, BinaryClassification, AdversarialClassification)
    if not isinstance(task, kinds):
        raise UserError(
            f"{run.workdir} is a run of the task {type(task).__name__}: an audit needs "
            f"{', '.join(kind.__name__ for kind in kinds)}"
        )


def labels_of(run: Run, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the classes of examples, (examples,) int."""
    labels = np.asarray(arrays[run.experiment.task.targets])
    return labels.argmax(1) if labels.ndim == 2 else labels.astype(int)


def as_probabilities(prediction: np.ndarray) -> np.ndarray:
    """Returns the probabilities of all classes, (examples, classes)."""
    return prediction if prediction.ndim == 2 else np.stack([1 - prediction, prediction], 1)


def _audit(
    labels: np.ndarray,
    probabilities: np.ndarray,
    columns: Sequence[Column],
    class_names: Sequence[str],
    positive: str,
    split: str,
    *,
    min_count: int = 30,
    replicas: int = 1000,
    confidence: float = 0.95,
    permutations: int = 9_999,
    seed: int = 0,
) -> Audit:
    num_classes = probabilities.shape[1]
    names = tuple(class_names) or tuple(map(str, range(num_classes)))
    classes = _compared(names, positive)
    cells, rows = intersection(columns), features(labels, probabilities)
    size = len(cells.groups)
    observed = np.zeros((1, size, rows.shape[1]))
    np.add.at(observed[0], cells.codes, rows)
    samples = bootstrap_sums(rows, cells.codes, size, replicas, seed)
    sums = np.concatenate([observed, samples])  # the first is of the examples themselves
    settings = {
        "min_count": min_count,
        "replicas": replicas,
        "confidence": confidence,
        "permutations": permutations,
        "seed": seed,
    }
    groupings = []
    for column in columns if len(columns) == 1 else [*columns, cells]:
        member = np.zeros((len(column.groups), size))
        member[column.codes, cells.codes] = 1
        each = Sums(np.einsum("gc,rck->rgk", member, sums), num_classes)
        groupings.append(_grouping(column, each, names, classes, settings))
    overall = Sums(sums.sum(1), num_classes)
    return Audit(
        split=split,
        classes=tuple(names[index] for index in classes),
        examples=len(labels),
        overall={
            name: _value(values, confidence)
            for name, values in _scores(overall, names, classes).items()
        },
        groupings=tuple(groupings),
        settings=settings,
    )


def _compared(names: Sequence[str], positive: str) -> list[int]:
    """Returns the classes whose rates are compared."""
    if not positive:
        return [1] if len(names) == 2 else list(range(len(names)))
    if positive not in names:
        raise UserError(
            f"there is no class {positive!r} (there are {', '.join(names)})"
            f"{nearest(positive, names)}"
        )
    return [list(names).index(positive)]


def _scores(sums: Sums, names: Sequence[str], classes: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns all scores by name, (replicas, ...); rates by class."""
    found = {name: sums.score(name) for name in SCORES}
    for rate in RATES:
        values = sums.score(rate)
        found |= {f"{rate}[{names[index]}]": values[..., index] for index in classes}
    return found


def _grouping(
    column: Column,
    sums: Sums,
    names: Sequence[str],
    classes: Sequence[int],
    settings: Mapping[str, Any],
) -> Grouping:
    """Scores and compares the groups of a column; `sums` are (replicas, groups, statistics)."""
    counts = np.rint(sums.examples[0]).astype(int)
    large = counts >= settings["min_count"]
    if large.sum() < 2:
        shown = ", ".join(f"{n} {c:,}" for n, c in zip(column.groups, counts, strict=True))
        raise UserError(
            f"the column {column.name!r} has fewer than two groups of {settings['min_count']} "
            f"examples ({shown:.300}): lower min_count, or audit a larger split"
        )
    kept = [group for group, is_large in zip(column.groups, large, strict=True) if is_large]
    sums = Sums(sums.values[:, large], sums.num_classes)
    scores = _scores(sums, names, classes)
    confidence = settings["confidence"]
    tests = _tests(sums, names, classes, settings)
    gaps = {}
    for name, parts in _criteria(names, classes).items():
        widest = max(parts, key=lambda part: np.nan_to_num(spread(scores[part][0]), nan=-1.0))
        values = np.stack([spread(scores[part]) for part in parts]).max(0)
        low, high = _extremes(scores[widest][0], kept)
        gaps[name] = Gap(_value(values, confidence), low, high, tests.get(widest, float("nan")))
    return Grouping(
        column=column.name,
        counts=dict(zip(column.groups, counts.tolist(), strict=True)),
        scores={
            name: {group: _value(values[:, i], confidence) for i, group in enumerate(kept)}
            for name, values in scores.items()
        },
        gaps=gaps,
        small=tuple(g for g, is_large in zip(column.groups, large, strict=True) if not is_large),
    )


def _criteria(names: Sequence[str], classes: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Returns the scores of each gap, by its name."""
    found = {
        f"{gap}[{names[index]}]": tuple(f"{rate}[{names[index]}]" for rate in rates)
        for gap, rates in GAPS.items()
        for index in classes
    }
    return {"accuracy": ("accuracy",), "ece": ("ece",), **found}


def _tests(
    sums: Sums, names: Sequence[str], classes: Sequence[int], settings: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the adjusted p-values of all proportions, by score."""
    observed = Sums(sums.values[0], sums.num_classes)
    pairs = {"accuracy": (observed.counts("right").sum(-1), observed.examples)}
    for rate, (above, below) in PROPORTIONS.items():
        for index in classes:
            counted = observed.counts(above)[:, index], observed.counts(below)[:, index]
            pairs[f"{rate}[{names[index]}]"] = counted
    permutations, seed = settings["permutations"], settings["seed"]
    found = [permutation_p_value(*pair, permutations, seed) for pair in pairs.values()]
    return dict(zip(pairs, holm(found), strict=True))


def _extremes(values: np.ndarray, groups: Sequence[str]) -> tuple[str, str]:
    """Returns the groups of the lowest and of the highest score."""
    if np.isnan(values).all():
        return "", ""
    return groups[int(np.nanargmin(values))], groups[int(np.nanargmax(values))]


def _value(values: np.ndarray, confidence: float) -> Value:
    """Returns the first of values (1 + replicas,), with the interval of the others."""
    low, high = interval(values[1:, None], confidence)
    return Value(float(values[0]), float(low[0]), float(high[0]))
