"""Trains a Flax module on arrays, with the habits of Keras and scikit-learn."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jdl.data.arrays import Arrays
from jdl.data.conversion import (
    ClassLabels,
    arrange_columns,
    check_rows,
    class_labels,
    frame_columns,
    is_frame,
    is_label_lists,
    multi_labels,
    to_numbers,
)
from jdl.errors import UserError, nearest
from jdl.experiment import Experiment
from jdl.parallel import Single
from jdl.tasks import (
    BinaryClassification,
    Classification,
    MultiLabelClassification,
    Regression,
    Task,
)
from jdl.tasks.classification import balanced_weights
from jdl.tasks.forward import forward
from jdl.trainer.api import train
from jdl.trainer.run import Run

ELSEWHERE = {
    "callbacks": "hooks=(EarlyStopping(), ...), from jdl.hooks",
    "learning_rate": "optimizer=Adam(1e-3), from jdl.optimizers, or an Optax transformation",
    "loss": "task=Regression(), or a task of your own, whose loss_and_metrics defines the loss",
    "lr": "optimizer=Adam(1e-3), from jdl.optimizers, or an Optax transformation",
    "metrics": "task=Classification(metrics=(MacroF1(), ...)), from jdl.metrics",
    "random_state": "seed=0",
    "sample_weight": "class_weight, or a task of your own whose objective weighs the examples",
    "shuffle": "jdl.train with the data Arrays(..., shuffle=False)",
    "validation_split": "validation_fraction=0.1",
    "verbose": "hooks=() to print nothing",
}
"""What takes the place of arguments of Keras and scikit-learn."""


def fit(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    validation_data: tuple[Any, Any] | None = None,
    validation_fraction: float = 0.0,
    epochs: float | np.number = 5,
    task: Task | None = None,
    class_weight: Mapping[Any, float] | Sequence[float] | str | None = None,
    workdir: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Trains a Flax module on arrays.

    Args:
      model: maps `x` to logits (batch, classes), to one logit (batch, 1) of two classes, or to real
        numbers.
      x: inputs: numbers (examples, ...), as lists, an array or a frame, whose columns are features;
        or a dict of these by name, for a module with several inputs.
      y: targets, likewise. Integers, booleans, texts and one-hot rows (examples, classes) are
        classes, lists of texts several for each example; other numbers, (examples,) or (examples,
        ...), are regressed.
      validation_data: `(x, y)` to evaluate during training, for `EarlyStopping` and `Checkpoint`.
      validation_fraction: share of the examples to hold out for that instead.
      epochs: passes over the data.
      task: by default `Classification` of classes, `BinaryClassification` where the model gives one
        logit, `MultiLabelClassification` of lists of classes, `Regression` of real numbers.
      class_weight: weight of each class in the loss: a dict by class, a sequence in the order of
        the classes, or `balanced` for classes that contribute equally.
      workdir: the run directory; None for a temporary one.
      **settings: further fields of `Experiment`, such as `optimizer`, `batch_size` or `hooks`.

    Returns:
      The finished run: `run.history`, `run.evaluate("train")`, `run.predict(x)`.

    Raises:
      UserError: model and arrays do not fit together, a value is no number, or an argument is
        unknown.
    """
    _check_settings(settings)
    pairs = {"train": (x, y), **_validation_pair(validation_data, validation_fraction)}
    task, data = _read(model, pairs, task)
    if class_weight is not None:
        labels = data.arrays["train"][task.targets]
        task = _weighted(task, class_weight, labels, data.class_names)
    data = dataclasses.replace(data, validation_fraction=validation_fraction)
    settings = {"strategy": Single(), "epochs": epochs, **settings}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
    return train(Experiment(model=model, task=task, data=data, **plain), workdir)


def _read(
    model: nn.Module, pairs: Mapping[str, tuple[Any, Any]], task: Task | None
) -> tuple[Task, Arrays]:
    """Returns the task, chosen unless it is given, and the arrays of `(x, y)` by split."""
    wheres = {"train": ("x", "y"), "validation": ("validation x", "validation y")}
    x, y = pairs["train"]
    columns = frame_columns(x)
    features = {}
    for split, pair in pairs.items():
        features[split] = _features(*pair, wheres[split], columns)
    _check_shapes(features)
    if task is None and is_label_lists(y):
        task = MultiLabelClassification()
    labels = _labels(task, {wheres[split][1]: pair[1] for split, pair in pairs.items()})
    if task is None:
        task = _choose_task(labels.get("y"), y, _output_shape(model, features["train"]))
    task, named = _name_inputs(task, features)
    arrays = {}
    for split, (_, values) in pairs.items():
        where = wheres[split][1]
        targets = labels[where].ids if labels else to_numbers(values, where)
        arrays[split] = {**named[split], task.targets: targets}
    if columns.keys() == {""}:
        columns = {task.input_names[0]: columns[""]}
    names = labels["y"].names if labels else ()
    kept = {"class_names": names, "columns": columns}
    return task, Arrays(arrays, test_fraction=0.0, validation_fraction=0.0, stratify=None, **kept)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raises a UserError for arguments that neither `fit` nor `Experiment` has."""
    known = {field.name for field in dataclasses.fields(Experiment)}
    for name in settings:
        if name in ELSEWHERE:
            raise UserError(f"jdl.fit has no argument {name!r}: use {ELSEWHERE[name]}")
        if name not in known or name in ("data", "steps"):
            hint = nearest(name, [*known, *inspect.signature(fit).parameters])
            raise UserError(f"jdl.fit has no argument {name!r}{hint}")


def _features(
    x: Any, y: Any, wheres: tuple[str, str], columns: Mapping[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """The inputs by name, frames with `columns` in their order; an empty name for one without."""
    if isinstance(y, (Mapping, set, frozenset)):
        raise UserError(f"{wheres[1]} is a {type(y).__name__}: pass an array, a list or a series")
    if isinstance(x, Mapping) and not x:
        raise UserError(f"{wheres[0]} is a dict without inputs")
    found = {}
    for name, values in (x if isinstance(x, Mapping) else {"": x}).items():
        if not isinstance(name, str):
            raise UserError(f"{wheres[0]} has the key {name!r}: inputs are named by strings")
        if name == "mask":
            raise UserError(
                f"{wheres[0]} has an input 'mask', by which a batch marks rows of padding: "
                f"give it another name"
            )
        where = f"{wheres[0]}[{name!r}]" if isinstance(x, Mapping) else wheres[0]
        check_rows(values, y, (where, wheres[1]))
        if is_frame(values) and name in columns:
            values = arrange_columns(values, columns[name], where)
        found[name] = to_numbers(values, where)
    return found


def _check_shapes(features: Mapping[str, dict[str, np.ndarray]]) -> None:
    """Raises a UserError if inputs for validation differ in shape from those for training."""
    for name, array in features.get("validation", {}).items():
        known = features["train"].get(name, array)
        if array.shape[1:] != known.shape[1:]:
            raise UserError(
                f"validation x has shape {array.shape[1:]} per example, x {known.shape[1:]}"
            )


def _name_inputs(
    task: Task, features: Mapping[str, dict[str, np.ndarray]]
) -> tuple[Task, dict[str, dict[str, np.ndarray]]]:
    """The task with the names of its inputs, and the inputs of each split by these names."""
    names = tuple(features["train"])
    unnamed = "" in names
    first, *others = task.input_names
    if unnamed:
        if others:
            raise UserError(f"the task has the inputs {task.inputs}: pass x as a dict of these")
    elif isinstance(task.inputs, str) or set(task.inputs) != set(names):
        task = dataclasses.replace(task, inputs=names if len(names) > 1 else next(iter(names)))
    for split, arrays in features.items():
        if set(arrays) != set(names):
            shown = sorted(arrays) if "" not in arrays else "an array"
            raise UserError(f"{split} x has {shown}, where the inputs are {sorted(names)}")
    if task.targets in names:
        raise UserError(f"x has an input {task.targets!r}, which is the name of the targets")
    if unnamed:
        return task, {split: {first: x[""]} for split, x in features.items()}
    return task, dict(features)


def _validation_pair(pair: Any, fraction: float) -> dict[str, tuple[Any, Any]]:
    if pair is None:
        return {}
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError("validation_data must be a pair (x, y)")
    if fraction:
        raise UserError("validation_data and validation_fraction exclude each other: set one")
    return {"validation": (pair[0], pair[1])}


def _labels(task: Task | None, targets: Mapping[str, Any]) -> dict[str, ClassLabels]:
    """Class labels of each split by where they stand; empty if the targets are real numbers."""
    labels: dict[str, ClassLabels] = {}
    if isinstance(task, MultiLabelClassification):
        for where, values in targets.items():
            labels[where] = multi_labels(values, where, labels["y"].names if labels else None)
        _announce(labels["y"])
        return labels
    if not (task is None or isinstance(task, (Classification, BinaryClassification))):
        return {}
    for where, values in targets.items():
        found = class_labels(values, where, labels["y"].names if labels else None)
        if found is None:
            if labels:
                raise UserError(f"{where} holds real numbers, where y holds classes")
            return {}
        if labels and bool(found.names) != bool(labels["y"].names):
            kinds = ("texts", "numbers") if found.names else ("numbers", "texts")
            raise UserError(f"{where} holds {kinds[0]}, where y holds {kinds[1]}: convert one")
        labels[where] = found
    _announce(labels["y"])
    return labels


def _announce(labels: ClassLabels) -> None:
    """Prints how targets were read, unless they were class numbers already."""
    if labels.note:
        print(f"jdl.fit: {labels.note}", flush=True)


def _choose_task(labels: ClassLabels | None, values: Any, outputs: tuple[int, ...]) -> Task:
    """Chooses the task by targets and the shape of the model's output, (1, ...)."""
    if labels is None:
        array = to_numbers(values, "y")
        whole = array.ndim == 1 and not (array % 1).any()
        if whole and len(outputs) == 2 and outputs[1] > 1:
            raise UserError(
                f"y holds whole numbers of dtype {array.dtype} and the model gives {outputs[1]} "
                f"outputs: for classes pass y.astype(int)"
            )
        instead = ""
        if whole and set(np.unique(array)) == {0, 1}:
            instead = "classes 0 and 1 pass y.astype(int)"
        if array.ndim == 2 and array.shape[1] > 1 and ((array >= 0) & (array <= 1)).all():
            instead = (
                "probabilities or several labels per example pass task=MultiLabelClassification()"
            )
        if instead:
            print(f"jdl.fit: y read as real numbers; for {instead}", flush=True)
        return Regression()
    if outputs[1:] != (1,):
        return Classification()
    if labels.ids.size and not 0 <= labels.ids.min() <= labels.ids.max() <= 1:
        raise UserError(
            f"y holds integers up to {labels.ids.max()} and the model gives one output: give it "
            f"one output per class, or pass task=Regression()"
        )
    return BinaryClassification()


def _output_shape(model: nn.Module, features: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Shape of the model's output for one example; empty if the model cannot take it."""
    task = Task(inputs=tuple(features))
    # JAX warns of 64-bit dtypes, which it does not have.
    example = {
        k: jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
        for k, x in features.items()
    }

    def apply(key: jax.Array, batch: Any) -> Any:
        variables = task.init(model, key, batch)
        params = variables.pop("params", {})
        inputs, named = task.model_inputs(model, batch)
        return forward(model, params, variables, *inputs, train=False, **named)[0]

    try:
        return jax.eval_shape(apply, jax.random.key(0), example).shape
    except Exception:  # the run describes it, with all its names
        return ()


def _weighted(task: Task, weight: Any, labels: np.ndarray, names: Sequence[str]) -> Task:
    """The task with weights of classes."""
    if not isinstance(task, (Classification, BinaryClassification)):
        raise UserError(f"class_weight needs classes, and the task is {type(task).__name__}")
    if isinstance(weight, str) and weight == "balanced":
        return dataclasses.replace(task, class_weights=balanced_weights(labels))
    form = f"class_weight must be 'balanced', a dict or a sequence of numbers, not {weight!r}"
    if isinstance(weight, str) or not hasattr(weight, "__len__"):
        raise UserError(form)
    if isinstance(weight, Mapping):
        classes = list(names) or list(range(int(labels.max()) + 1))
        if odd := [key for key in weight if key not in classes]:
            raise UserError(f"class_weight has the class {odd[0]!r}, which y does not have")
        if missing := [each for each in classes if each not in weight]:
            raise UserError(f"class_weight lacks the class {missing[0]!r}")
        weight = [weight[each] for each in classes]
    try:
        weights = tuple(float(each) for each in weight)
    except (TypeError, ValueError) as error:
        raise UserError(form) from error
    return dataclasses.replace(task, class_weights=weights)
