"""Networks inside a task that do not train: frozen ones, and the average of the trained one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import flax.linen as nn
import jax

from jdl.errors import UserError
from jdl.optimizers import average_paths, averaged_params
from jdl.state import TrainState
from jdl.tasks.forward import forward, initialize, intermediates
from jdl.tasks.observe import unobserved
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A network that a task applies and never changes, such as a feature extractor.

    As a field of a task, its variables are the collection `name` of the state: sharded, saved and
    restored with it. Gradients pass through it to its inputs:

        extractor: Frozen = Frozen(CNN(), name="extractor", run="runs/mnist_cnn")
        features = self.extractor(state, images)

    In a `Game` the state is `play.state`.
    """

    model: nn.Module = field(kw_only=False)  # the network
    name: str = "frozen"  # of its collection in the state
    run: str | None = None  # directory of its weights, as `InitFrom.run`; None: random ones
    inputs: str | tuple[str, ...] = "image"  # arrays of a batch that initialize it

    def init(self, key: Key, batch: Batch) -> dict[str, PyTree]:
        """Returns random variables of the network, for inputs like those of `batch`."""
        names = (self.inputs,) if isinstance(self.inputs, str) else self.inputs
        with unobserved():
            return initialize(self.model, key, *(batch[name] for name in names))

    def __call__(
        self, state: TrainState, *inputs: Any, method: str = "__call__", **named: Any
    ) -> Any:
        """Applies the network in evaluation mode.

        Args:
          state: of the run.
          *inputs: positional inputs of the method.
          method: name of the network's method.
          **named: keyword inputs; those that the method does not take are dropped.

        Raises:
          UserError: the state lacks its variables.
        """
        params, own = self._variables(state)
        with unobserved():
            return forward(self.model, params, own, *inputs, train=False, method=method, **named)[0]

    def intermediates(
        self, state: TrainState, *inputs: Any, modules: Sequence[str], **named: Any
    ) -> list[jax.Array]:
        """Applies the network in evaluation mode and returns the outputs of some of its modules.

        What only later layers need is not computed.

        Args:
          state: of the run.
          *inputs: positional inputs of the network.
          modules: paths of the modules, such as `Conv_0` or `encoder.Dense_1`.
          **named: keyword inputs.

        Raises:
          UserError: the network has no such module.
        """
        return self.with_intermediates(state, *inputs, modules=modules, **named)[1]

    def with_intermediates(
        self, state: TrainState, *inputs: Any, modules: Sequence[str], **named: Any
    ) -> tuple[Any, list[jax.Array]]:
        """Returns the outputs of the network, and those of some of its modules."""
        params, own = self._variables(state)
        with unobserved():
            outputs, found = forward(
                self.model, params, own, *inputs, train=False, capture=modules, **named
            )
        where = f"the network {self.name!r} of the task"
        return outputs, intermediates(found, modules, params, where)

    def _variables(self, state: TrainState) -> tuple[PyTree, dict[str, PyTree]]:
        if self.name not in state.collections:
            raise UserError(
                f"the state has no variables of the frozen network {self.name!r}: make the network "
                f"a field of the task"
            )
        own = dict(jax.lax.stop_gradient(state.collections[self.name]))
        return own.pop("params", {}), own


def frozen_networks(task: Any) -> dict[str, Frozen]:
    """Returns the frozen networks among the fields of a task, by the name of their collection.

    Raises:
      UserError: two have the same name.
    """
    found: dict[str, Frozen] = {}
    for each in fields(task):
        value = getattr(task, each.name)
        if isinstance(value, Frozen):
            if value.name in found or value.name == "params":
                raise UserError(
                    f"task.{each.name}.name is {value.name!r}, as another part of the state: "
                    f"choose another"
                )
            found[value.name] = value
    return found


def init_frozen(task: Any, variables: Mapping[str, PyTree], key: Key, batch: Batch) -> PyTree:
    """Returns the variables of a model with those of the task's frozen networks added.

    Raises:
      UserError: the model has a collection of that name.
    """
    found = dict(variables)
    for index, (name, network) in enumerate(frozen_networks(task).items()):
        if name in found:
            raise UserError(
                f"the model has a collection {name!r}, as which the task has a frozen network: "
                f"give that another name"
            )
        found[name] = network.init(jax.random.fold_in(key, index), batch)
    return found


def with_frozen(task: Any, new: Mapping[str, PyTree], old: Mapping[str, PyTree]) -> PyTree:
    """Returns new collections with those of frozen networks as they were."""
    return {**new, **{name: old[name] for name in frozen_networks(task)}}


def teacher_params(state: TrainState) -> PyTree:
    """Returns the average of the trained weights, as a teacher (Tarvainen and Valpola, 2017).

    The optimizer keeps it, with the decay `ema_decay`; it is saved, sharded and restored with its
    state, and the run is evaluated with it. Before the first step it is the initial weights.

    Raises:
      UserError: the optimizer keeps none.
    """
    if not average_paths(state.opt_state):
        raise UserError(
            "the task reads a teacher, the average of the trained weights: set optimizer.ema_decay"
        )
    return jax.lax.stop_gradient(averaged_params(state.opt_state, state.params))
