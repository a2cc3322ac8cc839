"""Games: several players, each with a loss of its own over its own parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdl.errors import UserError, nearest
from jdl.metrics import Mean, Metrics, SumOfMeans
from jdl.paths import path_name, within
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.forward import forward
from jdl.tasks.gradients import ascent, check_dtypes
from jdl.tasks.untrained import init_frozen
from jdl.tracing import errors_of, mode_arguments, takes_argument
from jdl.typing import Batch, Key, PyTree


class Play:
    """The players' networks on one batch, as `Game.losses` applies them.

    Attributes:
      train: whether this is a training step.
      state: as before the step, which a `Frozen` network and `teacher_params` read.
      collections: the model's other variables, as the calls so far have updated them.
      metrics: further metrics by name, for `losses` to add to.
    """

    def __init__(
        self, model: nn.Module, params: PyTree, state: TrainState, train: bool, key: Key | None
    ) -> None:
        self.train, self.state, self.collections = train, state, dict(state.collections)
        self.metrics: dict[str, Any] = {}
        self._model, self._params, self._key = model, params, key
        self._calls = 0

    def __call__(self, method: str, *inputs: Any, update: bool = True, **named: Any) -> Any:
        """Returns the output of a method of the model.

        Args:
          method: its name.
          *inputs: its positional inputs.
          update: whether running statistics take part in the call; False inside of `jax.grad`.
          **named: its keyword inputs; those that it does not take are dropped.
        """
        key = None if self._key is None else jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        output, collections = forward(
            self._model, self._params, self.collections, *inputs,
            train=self.train, key=key, method=method, **named,
        )  # fmt: skip
        if update:
            self.collections = collections
        return output

    def gradient(self, method: str, x: jax.Array, **named: Any) -> jax.Array:
        """Returns the gradient of each row's output with respect to the row, shaped like `x`.

        `(play.gradient("judge", x) ** 2).sum((1, 2, 3))` is the penalty R1 of Mescheder et al.
        (2018, equation 9), but for a factor.
        """
        return jax.grad(lambda x: self(method, x, update=False, **named).sum())(x)

    def lazy(self, every: int, penalty: Callable[[], jax.Array]) -> jax.Array:
        """Computes a penalty in one of `every` training steps, and returns `every` times it.

        It is zero in the others, and once the penalty in evaluation: lazy regularization (Karras et
        al., 2020, section 3.1).

        Args:
          every: training steps, at least 1.
          penalty: returns an array, such as one number per row; it calls the model by `gradient`,
            or with `update=False`.
        """
        if every < 1:
            raise UserError(f"a penalty every {every} steps: give a number of at least 1")
        if not self.train or every == 1:
            return penalty()
        shape = jax.eval_shape(penalty)
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.cond(self.state.step % every == 0, lambda: every * penalty(), lambda: zeros)


class _Initializing(Play):
    """Calls the methods of a bound module, whose variables are then initialized."""

    def __init__(self, module: nn.Module, state: TrainState) -> None:
        super().__init__(module, {}, state, train=False, key=None)

    def __call__(self, method: str, *inputs: Any, update: bool = True, **named: Any) -> Any:
        del update
        known = {k: v for k, v in named.items() if takes_argument(self._model, k, method)}
        known |= mode_arguments(self._model, False, method)
        return getattr(self._model, method)(*inputs, **known)

    def gradient(self, method: str, x: jax.Array, **named: Any) -> jax.Array:
        self(method, x, **named)
        return jnp.zeros_like(x)  # Flax forbids `jax.grad` here


@dataclass(frozen=True, kw_only=True)
class Game(Task):
    """Several players, each of which minimizes its own loss over its own parameters.

    A player is a module of the model, such as `generator`. A subclass defines `losses`, and
    `sample` or, if the prediction is not the model's output, `predict`. All players step at once,
    each on the gradient at the parameters that all have before the step (Mescheder et al., 2017); a
    `Partition` gives each its own optimizer. The model's variables are those that `losses` uses.

    Metrics: `PLAYER_loss` of each, their sum `loss`, `play.metrics`, and in evaluation `metrics`,
    which compare the prediction with `targets`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sown_losses:
            raise UserError(
                f"task.sown_losses has no effect on {type(self).__name__}, a game: add to the "
                f"players' losses in its losses"
            )

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`."""
        frozen = init_frozen(self, {}, key, batch)
        step = jnp.zeros((), jnp.int32)
        state = TrainState(step=step, key=key, params={}, collections=frozen, opt_state=())

        def losses(module: nn.Module, batch: Batch) -> Any:
            return self.losses(_Initializing(module, state), batch)

        with errors_of(f"{type(self).__name__}.losses cannot initialize {type(model).__name__}"):
            return dict(model.init(key, dict(batch), method=losses))

    def losses(self, play: Play, batch: Batch) -> Mapping[str, Mean]:
        """Computes the loss of each player, by the path of its module; masked rows never count.

        Args:
          play: applies the model.
          batch: arrays (batch, ...); `row_keys(batch)` are the keys to draw noise from.
        """
        raise NotImplementedError

    def gradient(
        self, model: nn.Module, state: TrainState, batch: Batch, key: Key
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], Metrics]:
        """See `Task.gradient`.

        Raises:
          UserError: a player has no parameters, or a parameter no player or two.
        """
        check_dtypes(state.params)
        names = jax.eval_shape(lambda: self._play(model, state.params, state, batch, key)[0])
        owners = _owners(state.params, tuple(names), type(self).__name__)
        gradients, rest = state.params, None
        for player in names:
            # One backward pass each, through its own loss alone: cotangents of zero for the others
            # would let their NaNs in. XLA merges the forward passes.
            def total(own: dict[str, jax.Array], player: str = player) -> tuple[jax.Array, Any]:
                params = _replaced(state.params, own)
                means, *rest = self._play(model, params, state, batch, key)
                return means[player].total, (means, *rest)

            own = {path: x for path, x in _leaves(state.params).items() if owners[path] == player}
            found, rest = jax.grad(total, has_aux=True)(own)
            gradients = _replaced(gradients, ascent(found))
        assert rest is not None
        means, collections, metrics = rest
        weight = _prefix(state.params, {name: mean.count for name, mean in means.items()})
        return gradients, weight, collections, metrics

    def evaluate(self, model: nn.Module, state: TrainState, batch: Batch) -> Metrics:
        """See `Task.evaluate`: the players' losses in evaluation mode."""
        found = dict(self._play(model, state.params, state, batch, None)[2])
        if self.metrics:
            prediction, targets = self.predict(model, state, batch), self.target(batch)
            found |= {m.name: m.of(prediction, targets, batch["mask"]) for m in self.metrics}
        return found

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """See `Task.predict`; a sample for each row if the game defines `sample`.

        Raises:
          UserError: it does not, and the model has no output.
        """
        if type(self).sample is not Task.sample:
            return self.sample(model, state, batch)
        if not any("__call__" in vars(each) for each in type(model).__mro__):
            raise UserError(
                f"{type(self).__name__} defines neither sample nor predict, and "
                f"{type(model).__name__} has no __call__, whose output would be the prediction: "
                f"define one of them"
            )
        return super().predict(model, state, batch)

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`: a game needs targets only for `metrics`."""
        return super().required_names if self.metrics else self.input_names

    def _play(
        self, model: nn.Module, params: PyTree, state: TrainState, batch: Batch, key: Key | None
    ) -> tuple[dict[str, Mean], dict[str, PyTree], Metrics]:
        """Returns losses by player, collections and metrics; in evaluation `key` is None."""
        play = Play(model, params, state, key is not None, key)
        means = dict(self.losses(play, batch))
        for name, mean in means.items():
            if not isinstance(mean, Mean):
                raise UserError(
                    f"{type(self).__name__}.losses returns {type(mean).__name__} for {name!r}: "
                    f"return a Mean, as Mean.of(values, batch['mask'])"
                )
        named = {f"{name}_loss": mean for name, mean in means.items()}
        loss = SumOfMeans(tuple(means.values()))
        return means, play.collections, {**named, "loss": loss, **play.metrics}


def _owners(params: PyTree, players: tuple[str, ...], task: str) -> dict[str, str]:
    """Returns the player of each parameter, by path.

    Raises:
      UserError: a player has no parameters, or a parameter no player or two.
    """
    paths = list(_leaves(params))
    found = {path: [player for player in players if within(path, (player,))] for path in paths}
    for player in players:
        if not any(player in each for each in found.values()):
            known = list(dict.fromkeys(path.split(".")[0] for path in paths))
            raise UserError(
                f"{task}.losses has the player {player!r}, which has no parameters (the model's "
                f"modules are {', '.join(known)}){nearest(player, known)}"
            )
    for path, each in found.items():
        if not each:
            raise UserError(
                f"{task}.losses: the parameter {path} belongs to no player (they are "
                f"{', '.join(players)}): return a loss for its module, too"
            )
        if len(each) > 1:
            raise UserError(
                f"{task}.losses: the parameter {path} belongs to two players, {each[0]!r} and "
                f"{each[1]!r}: name modules that do not contain one another"
            )
    return {path: each[0] for path, each in found.items()}


def _leaves(params: PyTree) -> dict[str, jax.Array]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def _replaced(params: PyTree, new: Mapping[str, jax.Array]) -> PyTree:
    """Returns parameters with other leaves at some paths."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(path_name(path), leaf), params
    )


def _prefix(params: PyTree, values: Mapping[str, Any], path: str = "") -> PyTree:
    """Returns a prefix of the parameters with a value in place of each named module."""
    if path in values:
        return values[path]
    return {
        name: _prefix(below, values, f"{path}.{name}" if path else name)
        for name, below in params.items()
    }
