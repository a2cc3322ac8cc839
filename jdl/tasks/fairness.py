"""Classification that treats groups of examples alike: penalties, group DRO, an adversary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.calibration import ConformalSets
from jdl.tasks.classification import Classification
from jdl.tasks.game import Game, Play
from jdl.typing import Batch, Json, Key, PyTree

DRO = "group_dro"
"""Name of the collection of the groups' weights."""


@dataclass(frozen=True, kw_only=True)
class FairClassification(Classification):
    """Classification with a term that makes predictions, or errors, alike in all groups.

    Groups are integers from 0 in arrays of the examples, such as columns of `Table.keep`; only
    training reads them, so that no group is needed to predict. By `criterion`, to the loss is added

    - `demographic_parity`: `strength` times the variance between groups of the mean probability of
      each class, summed over the classes.
    - `equalized_odds`: that within the examples of each true class, added up.
    - `equal_opportunity`: the same, of the probability of the true class alone.
    - `worst_group`: nothing. Group DRO (Sagawa et al., 2020, algorithm 1) minimizes the mean of the
      groups' losses, weighted by exponentiated gradient ascent of rate `strength`.

    The terms couple the rows of a batch, which should hold many of each group. Metrics are those of
    `Classification`; in training `loss` includes the term.
    """

    couples_rows: ClassVar[bool] = True

    group: str | tuple[str, ...] = "group"  # names of the arrays; of several, the intersections
    num_groups: tuple[int, ...] = (2,)  # values of each array
    criterion: Literal[
        "demographic_parity", "equalized_odds", "equal_opportunity", "worst_group"
    ] = "demographic_parity"  # what is made alike
    strength: float = 1.0  # of the term; of `worst_group` the rate of ascent

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.group, self.num_groups)
        if self.strength < 0:
            raise UserError(f"task.strength may not be negative, as {self.strength} is")

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`; group DRO adds a collection with the weight of each group."""
        found = super().init(model, key, batch)
        if self.criterion == "worst_group":
            size = int(np.prod(self.num_groups))
            found[DRO] = {"weights": jnp.full(size, 1 / size)}
        return found

    def batch_metrics(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """See `Task.batch_metrics`."""
        outputs, collections = self._apply(model, params, state, batch, train=train, key=key)
        metrics = {
            **self.loss_and_metrics(outputs, batch),
            **self.further_metrics(outputs, batch, train=train),
        }
        if not train:
            return metrics, collections
        members = one_hot_groups(batch, self.group, self.num_groups)
        loss = metrics["loss"]
        if self.criterion == "worst_group":
            value, weights = self._worst_group(outputs, batch, members, state)
            collections = {**collections, DRO: {"weights": weights}}
        else:
            value = loss.total / jnp.maximum(loss.count, 1)
            value += self.strength * self._variance(outputs, batch, members)
        return {**metrics, "loss": Mean(value * loss.count, loss.count)}, collections

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires the groups of training examples."""
        super().validate_batch(batch, outputs, where)
        if "train" in where:
            validate_groups(batch, self.group, self.num_groups, where)

    def _variance(self, outputs: jax.Array, batch: Batch, members: jax.Array) -> jax.Array:
        """Returns the variance between groups of mean probabilities, added up."""
        p = jax.nn.softmax(outputs.astype(jnp.float32))
        classes = jax.nn.one_hot(self.target(batch), p.shape[-1])
        within = jnp.ones((len(p), 1)) if self.criterion == "demographic_parity" else classes
        cells = members[:, :, None] * within[:, None]  # (batch, groups, conditions)
        counts = cells.sum(0)
        means = jnp.einsum("bgk,bc->gkc", cells, p) / jnp.maximum(counts, 1)[..., None]
        present = (counts > 0)[..., None]
        number = jnp.maximum(present.sum(0), 1)
        center = jnp.where(present, means, 0).sum(0) / number
        variance = jnp.where(present, (means - center) ** 2, 0).sum(0) / number  # (conditions, c)
        return jnp.trace(variance) if self.criterion == "equal_opportunity" else variance.sum()

    def _worst_group(
        self, outputs: jax.Array, batch: Batch, members: jax.Array, state: TrainState
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the weighted mean of the groups' losses, and the updated weights."""
        rows = self._cross_entropy(outputs, batch, self.label_smoothing)
        counts = members.sum(0)
        losses = members.T @ rows / jnp.maximum(counts, 1)
        ascent = self.strength * jax.lax.stop_gradient(losses)
        weights = state.collections[DRO]["weights"] * jnp.exp(ascent)
        weights /= weights.sum()
        return weights @ losses, weights


@dataclass(frozen=True, kw_only=True)
class AdversarialClassification(Game):
    """A classifier, and an adversary that guesses the group from what it predicts.

    For a model of `jdl.models.Debiased`. The adversary minimizes its cross-entropy; the predictor
    its own and `strength` times that between the adversary's guess and the groups that a row is not
    in. That is bounded below, where the adversary's loss, which Zhang et al. (2018) maximize, is
    unbounded above; and the adversary sees log probabilities standardized over the batch, so that
    predicting nearly the same for all examples deceives nobody. A `strength` that outweighs the
    labels may still end with one class for all: look at the accuracy of several seeds.

    Metrics: `predictor_loss`, `adversary_loss`, `loss`, `accuracy` and `nll` of the predictor;
    `adversary_accuracy` beside `largest_group`, which guessing without any knowledge reaches.
    """

    couples_rows: ClassVar[bool] = True

    group: str | tuple[str, ...] = "group"  # names of the arrays; of several, the intersections
    num_groups: tuple[int, ...] = (2,)  # values of each array
    criterion: Literal["demographic_parity", "equalized_odds"] = "demographic_parity"
    """What the adversary sees: the prediction, or the true class as well."""
    strength: float = 1.0  # of the predictor's interest in deceiving the adversary
    conformal: ConformalSets | None = None  # sets of classes to predict; set as `calibration` is

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.group, self.num_groups)

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`."""
        return (*self.input_names, self.targets)

    def losses(self, play: Play, batch: Batch) -> Mapping[str, Mean]:
        """See `Game.losses`."""
        logits = play("__call__", *(batch[name] for name in self.input_names))
        labels, mask = batch[self.targets], batch["mask"]
        own = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = logits.argmax(-1) == labels
        play.metrics["accuracy"] = Mean.of(right.astype(jnp.float32), mask)
        play.metrics["nll"] = Mean.of(own, mask)
        names = (self.group,) if isinstance(self.group, str) else self.group
        if not all(name in batch for name in names):  # as where a run predicts
            return {"predictor": Mean.of(own, mask), "adversary": Mean.of(0 * own, mask)}
        seen = _standardized(jax.nn.log_softmax(logits.astype(jnp.float32)), mask)
        if self.criterion == "equalized_odds":
            seen = jnp.concatenate([seen, jax.nn.one_hot(labels, logits.shape[-1])], axis=-1)
        members = one_hot_groups(batch, self.group, self.num_groups)
        guess = jax.nn.log_softmax(play("judge", seen))
        shares = members.sum(0) / jnp.maximum(members.sum(), 1)
        known = mask & (members.sum(1) > 0)
        found = guess.argmax(-1) == members.argmax(-1)
        play.metrics["adversary_accuracy"] = Mean.of(found.astype(jnp.float32), known)
        play.metrics["largest_group"] = Mean.of(
            (members.argmax(-1) == shares.argmax()).astype(jnp.float32), known
        )
        return {
            "predictor": Mean.of(own + self.strength * _confusion(guess, members, shares), mask),
            "adversary": Mean.of(-(members * guess).sum(-1), known),
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns class probabilities, (batch, classes) float32."""
        del batch
        return jax.nn.softmax(outputs.astype(jnp.float32))

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """See `Classification.format_prediction`."""
        return Classification(conformal=self.conformal).format_prediction(prediction, names)

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires labels that are class indices, and the groups of training examples."""
        Classification.validate_batch(
            Classification(inputs=self.inputs, targets=self.targets), batch, outputs, where
        )
        if "train" in where:
            validate_groups(batch, self.group, self.num_groups, where)


def _confusion(guess: jax.Array, members: jax.Array, shares: jax.Array) -> jax.Array:
    """Returns the cross-entropy (batch,) of a guess of each row's group and the other groups."""
    others = (1 - members) * shares
    others /= jnp.maximum(others.sum(-1, keepdims=True), 1e-9)
    return -(others * guess).sum(-1) * members.sum(-1)


def _standardized(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns values (batch, n) with a mean of 0 and a deviation of 1 over the unmasked rows."""
    weight = mask[:, None] / jnp.maximum(mask.sum(), 1)
    center = values - (weight * values).sum(0)
    return center * jax.lax.rsqrt((weight * center**2).sum(0) + 1e-4)


def one_hot_groups(
    batch: Batch, group: str | tuple[str, ...], num_groups: tuple[int, ...]
) -> jax.Array:
    """Returns whether each row is in each group, (batch, groups) float32.

    Masked rows, and those with a group below 0, are in none.
    """
    names = (group,) if isinstance(group, str) else group
    code, known = jnp.zeros(batch["mask"].shape, jnp.int32), batch["mask"].astype(bool)
    for name, size in zip(names, num_groups, strict=True):
        code = code * size + batch[name]
        known &= batch[name] >= 0
    return jax.nn.one_hot(code, int(np.prod(num_groups))) * known[:, None]


def check_groups(group: str | tuple[str, ...], num_groups: tuple[int, ...]) -> None:
    """Raises a UserError unless there is a number of groups for each array."""
    names = (group,) if isinstance(group, str) else group
    if len(names) != len(num_groups) or min(num_groups, default=0) < 2:
        raise UserError(
            f"task.num_groups has the number of groups, at least 2, of each array of task.group "
            f"({', '.join(names)}), not {num_groups}"
        )


def validate_groups(
    batch: Mapping[str, np.ndarray],
    group: str | tuple[str, ...],
    num_groups: tuple[int, ...],
    where: str,
) -> None:
    """Raises a UserError unless all rows have an integer group that is known."""
    names = (group,) if isinstance(group, str) else group
    for name, size in zip(names, num_groups, strict=True):
        if name not in batch:
            known = ", ".join(map(repr, sorted(batch)))
            raise UserError(
                f"{where} has no array {name!r} (it has {known}): name the groups with task.group, "
                f"and keep them beside the inputs, as with data.keep"
            )
        values = np.asarray(batch[name])
        if values.ndim != 1 or values.dtype.kind not in "iub":
            raise UserError(
                f"{where}: {name!r} has shape {values.shape} and dtype {values.dtype}, where a "
                f"group is one integer of each example"
            )
        wrong = np.flatnonzero(values >= size)
        if wrong.size:
            raise UserError(
                f"{where}: {name!r} holds {values[wrong[0]]} at row {wrong[0]}, where "
                f"task.num_groups says {size} groups: raise it"
            )
