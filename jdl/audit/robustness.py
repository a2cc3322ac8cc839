"""Scores of a classifier under attacks and corruptions, and of ensembles, row by row."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.audit.calibrate import evaluate_calibration
from jdl.audit.groups import read_arrays
from jdl.audit.report import as_probabilities, check_classifier, labels_of
from jdl.errors import UserError
from jdl.inference.ensemble import open_ensemble, seed_directories
from jdl.state import TrainState
from jdl.step import Program, transform
from jdl.tasks import forward
from jdl.tasks.observe import observe
from jdl.trainer.run import Run
from jdl.typing import Batch, Key

Change = Callable[[TrainState, Batch, Key], Batch]
"""Changes the inputs of a batch, for the model of a state."""

IMAGE_LEVELS: Mapping[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation, of the range of values
    "gaussian_blur": (0.01, 0.02, 0.03, 0.045, 0.06),  # deviation, of the image's height
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # what remains of it
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, of the range of values
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # side, of the image's
}
"""Corruptions of images by severity from 1 to 5, as of Hendrycks and Dietterich (2019)."""

VECTOR_LEVELS: Mapping[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation, of the range of values
    "missing": (0.1, 0.2, 0.3, 0.4, 0.5),  # share of inputs set to 0, the mean of scaled columns
}
"""Corruptions of other real inputs, by severity."""


@dataclass(frozen=True)
class Row:
    """The scores of predictions for a changed split, or of several predictions for it.

    Attributes:
      name: of the change.
      accuracy, nll, ece: as of an audit.
      confidence: mean of the largest probability.
      ood_auroc: area under the curve of telling changed examples from unchanged ones by 1 less the
        largest probability (Hendrycks and Gimpel, 2017); 0.5: the model notices nothing.
      mutual_information: of several predictions, the mean entropy that is due to their differences,
        in nats (Depeweg et al., 2018); NaN for one.
    """

    name: str
    accuracy: float
    nll: float
    ece: float
    confidence: float
    ood_auroc: float = float("nan")
    mutual_information: float = float("nan")


def robustness(
    run: Run,
    split: str = "test",
    *,
    epsilon: float = 0.03,
    severity: int = 3,
    steps: int = 10,
    samples: int = 20,
    limit: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Scores a classifier on a split as it is, attacked, corrupted, and averaged.

    Attacks and corruptions change the model's input after the device transforms. The first row is
    of the split itself; then `fgsm` (Goodfellow et al., 2015) and `pgd` (Madry et al., 2018) in the
    maximum norm; each corruption; `mc_dropout` (Gal and Ghahramani, 2016) if the model has dropout;
    and `ensemble` (Lakshminarayanan et al., 2017) of the seeds beside the run, if there are any.

    Args:
      run: of a classifier with one real input.
      split: of the data.
      epsilon: largest change of a value in attacks, as a share of the range of the values in the
        split, of tables of the column's.
      severity: of corruptions, from 1 to 5.
      steps: of `pgd`, which begins at random.
      samples: predictions that `mc_dropout` averages.
      limit: examples at most, evenly over the split.
      seed: of noise and dropout.

    Raises:
      UserError: the run classifies nothing, or its input is not one real array.
    """
    check_classifier(run)
    if not 1 <= severity <= 5:
        raise UserError(f"the severity is a number from 1 to 5, not {severity}")
    arrays = read_arrays(run, split)
    count = len(next(iter(arrays.values())))
    kept = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
    arrays = {name: array[kept] for name, array in arrays.items()}
    labels = labels_of(run, arrays)
    inputs = _Inputs(run, arrays)
    key = jax.random.key(seed)
    clean = inputs.predict(_same, key)
    rows = [_row(split, labels, clean)]
    changes: dict[str, Change] = {
        "fgsm": inputs.attack(epsilon, 1),
        "pgd": inputs.attack(epsilon, steps),
        **inputs.corruptions(severity),
    }
    for name, change in changes.items():
        rows.append(_row(name, labels, inputs.predict(change, key), clean))
    several: dict[str, Sequence[np.ndarray]] = {}
    if inputs.has_dropout:
        keys = jax.random.split(key, samples)
        several["mc_dropout"] = [inputs.predict(_same, each, dropout=True) for each in keys]
    if seeds := seed_directories(run.workdir.resolve().parent):
        members = open_ensemble(seeds)
        several["ensemble"] = [as_probabilities(each.predict_rows(arrays)) for each in members]
    for name, found in several.items():
        rows.append(_row(name, labels, np.mean(found, 0), each=found))
    return rows


def _same(state: TrainState, batch: Batch, key: Key) -> Batch:
    """Changes nothing."""
    del state, key
    return batch


class _Inputs:
    """Predicts changed examples of a split, batch by batch."""

    def __init__(self, run: Run, arrays: Mapping[str, np.ndarray]) -> None:
        names = run.experiment.task.input_names
        self._run, self._arrays, self._name = run, arrays, names[0]
        self._program: Program = run.program
        self._state: TrainState = run.evaluation_state(run.gather_state())
        shapes = jax.eval_shape(
            lambda batch: transform(self._program, batch, None), self._batch(np.arange(1))
        )
        if len(names) > 1 or not jnp.issubdtype(shapes[self._name].dtype, jnp.inexact):
            held = f"{len(names)} inputs" if len(names) > 1 else "integers"
            raise UserError(
                f"the model of {run.workdir} reads {held}: attacks and corruptions change one "
                f"array of real numbers"
            )
        self._shape = shapes[self._name].shape[1:]
        self._low, self._high = self._range()

    @property
    def has_dropout(self) -> bool:
        """Whether dropout is active in training, and no batch normalization."""
        with observe() as observed:
            jax.eval_shape(
                functools.partial(self._outputs, dropout=True),
                self._state,
                self._batch(np.arange(1)),
                jax.random.key(0),
            )
        norm = any(issubclass(kind, nn.BatchNorm) for kind in observed.kinds.values())
        return any(observed.layers.values()) and not norm

    def predict(self, change: Change, key: Key, dropout: bool = False) -> np.ndarray:
        """Returns probabilities (examples, classes)."""

        @jax.jit
        def compute(state: TrainState, batch: Batch, key: Key) -> Any:
            changed = change(state, transform(self._program, batch, None), key)
            return self._outputs(state, changed, key, dropout=dropout, transformed=True)

        size, count = self._run.experiment.batch_size, len(self._arrays[self._name])
        parts = []
        for begin in range(0, count, size):
            index = np.minimum(np.arange(begin, begin + size), count - 1)
            own = jax.random.fold_in(key, begin)
            found = np.asarray(compute(self._state, self._batch(index), own))
            parts.append(found[: min(size, count - begin)])
        return as_probabilities(np.concatenate(parts))

    def attack(self, epsilon: float, steps: int) -> Change:
        """Returns projected gradient ascent of the cross-entropy; one step is FGSM."""
        task, model, reach = self._program.task, self._program.model, self._high - self._low
        radius = epsilon * reach

        def change(state: TrainState, batch: Batch, key: Key) -> Batch:
            x = batch[self._name]

            def loss(changed: jax.Array) -> jax.Array:
                given = {**batch, self._name: changed}
                found, _ = task.batch_metrics(model, state.params, state, given, train=False)
                return found["nll"].total

            def step(_: Any, now: jax.Array) -> jax.Array:
                # 2.5 / steps of the radius: far enough to reach its edge from any start.
                by = radius if steps == 1 else 2.5 * radius / steps
                now = now + by * jnp.sign(jax.grad(loss)(now))
                return jnp.clip(jnp.clip(now, x - radius, x + radius), self._low, self._high)

            begin = x
            if steps > 1:
                begin = x + jax.random.uniform(key, x.shape, x.dtype, -radius, radius)
                begin = jnp.clip(begin, self._low, self._high)
            return {**batch, self._name: jax.lax.fori_loop(0, steps, step, begin)}

        return change

    def corruptions(self, severity: int) -> dict[str, Change]:
        """Returns the corruptions that fit the input."""
        is_image = len(self._shape) == 3 and self._shape[-1] in (1, 3, 4)
        levels = IMAGE_LEVELS if is_image else VECTOR_LEVELS
        found = {}
        for name, each in levels.items():
            found[name] = functools.partial(self._corrupted, name, each[severity - 1])
        return found

    def _corrupted(
        self, name: str, level: float, state: TrainState, batch: Batch, key: Key
    ) -> Batch:
        del state
        x, reach = batch[self._name], self._high - self._low
        if name == "gaussian_noise":
            x = x + level * reach * jax.random.normal(key, x.shape, x.dtype)
        elif name == "missing":
            return {**batch, self._name: jnp.where(jax.random.uniform(key, x.shape) < level, 0, x)}
        elif name == "brightness":
            x = x + level * reach
        elif name == "contrast":
            center = x.mean((1, 2, 3), keepdims=True)
            x = center + level * (x - center)
        elif name == "pixelate":
            height, width = (max(1, round(level * side)) for side in x.shape[1:3])
            small = jax.image.resize(x, (len(x), height, width, x.shape[3]), "linear")
            x = jax.image.resize(small, x.shape, "nearest")
        else:
            x = _blurred(x, level * x.shape[1])
        return {**batch, self._name: jnp.clip(x, self._low, self._high)}

    def _outputs(
        self,
        state: TrainState,
        batch: Batch,
        key: Key,
        *,
        dropout: bool = False,
        transformed: bool = False,
    ) -> Any:
        task, model = self._program.task, self._program.model
        batch = batch if transformed else transform(self._program, batch, None)
        if not dropout:
            return task.predict(model, state, batch)
        inputs, named = task.model_inputs(model, batch)
        outputs, _ = forward(
            model, state.params, state.collections, *inputs, train=True, key=key, **named
        )
        outputs = outputs if task.calibration is None else task.calibration(outputs)
        return task.to_prediction(outputs, batch)

    def _batch(self, index: np.ndarray) -> Batch:
        found = {name: jnp.asarray(array[index]) for name, array in self._arrays.items()}
        return {**found, "mask": jnp.ones(len(index), bool)}

    def _range(self) -> tuple[jax.Array, jax.Array]:
        """Returns the smallest and largest value of the input, of tables those of each column."""
        own = jax.jit(lambda batch: transform(self._program, batch, None)[self._name])
        count = len(self._arrays[self._name])
        parts = [own(self._batch(np.arange(b, min(b + 256, count)))) for b in range(0, count, 256)]
        values = jnp.concatenate(parts)
        axes = tuple(range(values.ndim - (values.ndim == 2)))
        return values.min(axes), values.max(axes)


def _row(
    name: str,
    labels: np.ndarray,
    p: np.ndarray,
    clean: np.ndarray | None = None,
    each: Sequence[np.ndarray] = (),
) -> Row:
    scores = evaluate_calibration(labels, p)
    further = {}
    if clean is not None:
        from sklearn.metrics import roc_auc_score

        changed = np.repeat([0, 1], len(p))
        unsure = 1 - np.concatenate([clean.max(1), p.max(1)])
        further["ood_auroc"] = float(roc_auc_score(changed, unsure))
    if len(each) > 1:
        own = np.mean([entropy(one) for one in each], 0)
        further["mutual_information"] = float((entropy(p) - own).mean())
    return Row(name, **scores, confidence=float(p.max(1).mean()), **further)


def entropy(p: np.ndarray) -> np.ndarray:
    """Returns the entropy of probabilities (..., classes), in nats."""
    p = p.astype(np.float64)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))


def _blurred(x: jax.Array, deviation: float) -> jax.Array:
    """Returns images (batch, height, width, channels) smoothed by a Gaussian, edges repeated."""
    reach = max(1, round(3 * deviation))
    offsets = jnp.arange(-reach, reach + 1)
    kernel = jnp.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (reach, reach)
        padded, size = jnp.pad(x, pads, mode="edge"), x.shape[axis]
        shifted = (
            weight * jax.lax.slice_in_dim(padded, place, place + size, axis=axis)
            for place, weight in enumerate(kernel)
        )
        x = sum(shifted, jnp.zeros_like(x))
    return x
