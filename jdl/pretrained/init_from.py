"""Initializes a run from the weights of another run or of a Hugging Face model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jdl.checkpoint import CheckpointStore
from jdl.errors import UserError
from jdl.files import RunDirectory
from jdl.layers import LoRA
from jdl.layers.lora import A, B
from jdl.paths import check_modules, path_name, within
from jdl.pretrained.config import CONFIG
from jdl.pretrained.huggingface import read_arrays
from jdl.pretrained.layouts import ACTIVATIONS, LAYOUTS
from jdl.pretrained.tensors import FILE, describe
from jdl.pretrained.timm import is_timm, read_timm
from jdl.state import TrainState
from jdl.tasks import Task
from jdl.tasks.untrained import frozen_networks

UNSEEN = ("num_heads", "norm", "epsilon", "activation", "gated", "use_bias", "pad_token_id")
"""Fields that change what a block computes without changing the shapes of its arrays."""
LOST = ("num_layers", "position_embedding", "tie_word_embeddings")
"""Fields that may leave the model without some of the arrays, which would be dropped silently."""

SKIP = "to initialize it instead, list its module in init_from.skip"
SAME = "it must be that run's model, for images of the same height, width and channels"


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Initializes parameters from another run, a pretrained model, or tensors by path.

    Of a run these are the weights that it is evaluated with; of a Hugging Face model see
    `jdl.pretrained.load`, of one of timm `jdl.pretrained.load_timm`. A directory may also hold just
    a `model.safetensors` whose tensors have the paths of the state, such as `params.Conv_0.kernel`
    and `collections.batch_stats.BatchNorm_0.mean`. Modules are named by path, such as `Conv_0` or
    `encoder.Dense_1`; skipped modules are initialized at random. A Hugging Face model must compute
    the same function: settings that shapes do not show, such as the number of heads, are compared
    with its `config.json`.
    """

    run: str | None = None  # directory of a run or of safetensors; None: initialize at random
    modules: tuple[str, ...] = ()  # modules to load; empty: all
    skip: tuple[str, ...] = ()  # modules to initialize at random

    def read(self, like: TrainState, model: nn.Module, remedy: str = SKIP) -> dict[str, np.ndarray]:
        """Reads the arrays to load, by their path in the state.

        Reads arrays and JSON only, and verifies a run's checkpoint, as on resume.

        Args:
          like: shapes and dtypes of the new run's state.
          model: the model of the new run.
          remedy: what to do about an array that does not fit, for the error.

        Raises:
          UserError: there is no such run or module, an array is missing or has another shape, or
            a Hugging Face model computes another function of the same arrays.
        """
        if self.run is None:
            return {}
        leaves = jax.tree_util.tree_leaves_with_path(_learned(like))
        wanted = {path_name(path): leaf for path, leaf in leaves}
        check_modules(map(_module, wanted), (*self.modules, *self.skip))
        known = {_module(path) for path in wanted}
        wanted = {path: x for path, x in wanted.items() if self._takes(_module(path))}
        theirs, given = _given(Path(self.run).expanduser(), getattr(model, "scan", False))
        if isinstance(model, LoRA):
            model = model.model
            own = [p for p in wanted if p.rpartition(".")[2] in (A, B) and p not in given]
            wanted = {path: x for path, x in wanted.items() if path not in own}
        if theirs is not None and any(_module(path).startswith("block") for path in wanted):
            self._check_same(theirs, model)
        if is_timm(Path(self.run).expanduser() / CONFIG) and not self.modules:
            lost = [path for path in given if _module(path) not in known]
            if lost:
                raise UserError(
                    f"init_from.run: the model of {self.run} has {lost[0]}, which this model "
                    f"lacks: set the same sizes, or name what to load in init_from.modules"
                )
        taken = {}
        for path, leaf in wanted.items():
            found = given.get(path)
            if found is None or found.shape != leaf.shape:
                problem = "is not in" if found is None else f"has shape {found.shape} in"
                raise UserError(
                    f"init_from.run: {path}, of shape {leaf.shape} in this model, {problem} "
                    f"{self.run}; {remedy}"
                )
            taken[path] = given[path].astype(leaf.dtype)
        return taken

    def _takes(self, module: str) -> bool:
        kept = not self.modules or within(module, self.modules)
        return kept and not within(module, self.skip)

    def _check_same(self, theirs: nn.Module, model: nn.Module) -> None:
        """Raises a UserError if the models compute different functions of the same arrays."""
        there, here = type(theirs), type(model)
        wrong = _differences(theirs, model, () if self.modules else LOST)
        if here is not there and here in [layout.model for layout in LAYOUTS]:
            wrong = [f"model is a {there.__name__} there, not a {here.__name__}"]
        if wrong:
            raise UserError(
                f"init_from.run: the model of {self.run} computes another function of the same "
                f"arrays: {'; '.join(wrong)}"
            )


def initial_arrays(
    init_from: InitFrom, task: Task, model: nn.Module, like: TrainState
) -> dict[str, np.ndarray]:
    """Reads the arrays that a run begins with, by their path in its state.

    Args:
      init_from: of the model.
      task: its frozen networks have their own weights.
      model: of the run.
      like: shapes and dtypes of the run's state.

    Raises:
      UserError: as `InitFrom.read`.
    """
    networks, rest = frozen_networks(task), dict(like.collections)
    found = {}
    for name, network in networks.items():
        own = dict(rest.pop(name))
        target = dataclasses.replace(like, params=own.pop("params", {}), collections=own)
        try:
            given = InitFrom(run=network.run).read(target, network.model, SAME)
        except UserError as error:
            raise UserError(f"the frozen network {name!r} of the task: {error}") from error
        for path, array in given.items():
            inner = path.removeprefix("collections.")
            found[f"collections.{name}.{inner}"] = array
    learned = dataclasses.replace(like, collections=rest)
    return {**found, **init_from.read(learned, model)}


def replace_arrays(state: TrainState, given: Mapping[str, np.ndarray]) -> TrainState:
    """Replaces arrays of a state's parameters and collections, given by path."""

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        return jax.device_put(given[name], leaf.sharding) if name in given else leaf

    learned = jax.tree_util.tree_map_with_path(choose, _learned(state))
    return dataclasses.replace(state, **learned)


def _learned(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "collections": state.collections}


def _given(run: Path, scan: bool) -> tuple[nn.Module | None, dict[str, np.ndarray]]:
    """Reads a directory's arrays by path, and its model if it is a Hugging Face one."""
    folder = RunDirectory(run).checkpoints
    if not folder.is_dir():
        if not run.exists():
            raise UserError(
                f"init_from.run: {run} does not exist: train that run first, for example with `jdl "
                f"train {run.name} --workdir {run}`"
            )
        if not (run / CONFIG).is_file():
            if not (run / FILE).is_file():
                raise UserError(
                    f"init_from.run: {run} has neither checkpoints of a run nor a {CONFIG} of "
                    f"transformers, nor a {FILE}"
                )
            return None, {name: tensor.read() for name, tensor in describe(run).items()}
        if is_timm(run / CONFIG):
            _, arrays = read_timm(run)
            return None, {_in_state(path): array for path, array in arrays.items()}
        model, arrays = read_arrays(run, scan)
        return model, {f"params.{path}": array for path, array in arrays.items()}
    store = CheckpointStore(folder)
    try:
        given = store.evaluation_arrays()
    finally:
        store.close()
    if given is None:
        raise UserError(f"init_from.run: {run} has no checkpoint yet: train it first")
    return None, given


def _in_state(path: str) -> str:
    """Returns the path in a state of one of a model's variables."""
    return path if path.startswith("params.") else f"collections.{path}"


def _differences(theirs: nn.Module, model: nn.Module, lost: tuple[str, ...]) -> list[str]:
    """Lists fields of `UNSEEN` and `lost` in which the two models differ."""
    shared = {x.name for x in dataclasses.fields(theirs)} & {
        x.name for x in dataclasses.fields(model)
    }
    found = []
    for name in (name for name in (*UNSEEN, *lost) if name in shared):
        there, here = getattr(theirs, name), getattr(model, name)
        if _unnoticed(name, there, here):
            found.append(f"model.{name} is {_shown(there)} there, not {_shown(here)}")
    return found


def _unnoticed(name: str, there: Any, here: Any) -> bool:
    """Whether a difference would go unnoticed by the comparison of shapes."""
    if name == "num_layers":
        return there > here
    if name == "tie_word_embeddings":
        return here and not there
    return there != here


def _shown(value: Any) -> Any:
    """A field's value as a user writes it; an activation by its name in Hugging Face."""
    if not callable(value):
        return value
    called = [name for name, function in ACTIVATIONS.items() if function is value]
    return called[0] if called else getattr(value, "__name__", value)


def _module(path: str) -> str:
    """A path without its leading `params` or collection name."""
    root, _, rest = path.partition(".")
    return rest if root == "params" else rest.partition(".")[2]
