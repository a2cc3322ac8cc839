"""Weights that one run ended with, or transformers saved, as those that another begins with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.checkpoint import Store
from jdl.errors import UserError
from jdl.paths import check_modules, path_name, within
from jdl.state import TrainState
from jdl.weights.config import CONFIG
from jdl.weights.huggingface import read_arrays


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a run begins with: weights that another run ended with, or fresh ones.

    They are those that the other run is scored with, or those of a model that Hugging Face
    transformers saved (see `jdl.weights.load`). Modules are named by path, such as `Conv_0` or
    `encoder.Dense_1`; what is left out begins as it would without another run.
    """

    run: str | None = None  # another run's directory, or one of transformers; none: all is fresh
    modules: tuple[str, ...] = ()  # that are taken; none given: all
    leave_out: tuple[str, ...] = ()  # modules that are not taken

    def read(self, like: TrainState) -> dict[str, np.ndarray]:
        """The arrays that a new run takes, by their path in the state.

        Only arrays and JSON are read, and of a run verified, as on resume.

        Args:
          like: shapes and dtypes of the new run's state.

        Raises:
          UserError: there is no such run or module, or an array is missing or has another shape.
        """
        if self.run is None:
            return {}
        leaves = jax.tree_util.tree_leaves_with_path(_learned(like))
        wanted = {path_name(path): leaf for path, leaf in leaves}
        check_modules(map(_module, wanted), (*self.modules, *self.leave_out))
        given = _given(Path(self.run).expanduser())
        taken = {}
        for path, leaf in wanted.items():
            if not self._takes(_module(path)):
                continue
            if path not in given or given[path].shape != leaf.shape:
                has = f"of shape {given[path].shape}" if path in given else "nowhere"
                raise UserError(
                    f"weights.run: {self.run} has {path} {has}, where this model has shape "
                    f"{leaf.shape}; weights.leave_out names modules that begin fresh"
                )
            taken[path] = given[path].astype(leaf.dtype)
        return taken

    def _takes(self, module: str) -> bool:
        kept = not self.modules or within(module, self.modules)
        return kept and not within(module, self.leave_out)


def replace_weights(state: TrainState, given: Mapping[str, np.ndarray]) -> TrainState:
    """The state with some arrays of its parameters and collections, by path, replaced."""

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        return jax.device_put(given[name], leaf.sharding) if name in given else leaf

    learned = jax.tree_util.tree_map_with_path(choose, _learned(state))
    return dataclasses.replace(state, **learned)


def _learned(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "collections": state.collections}


def _given(run: Path) -> dict[str, np.ndarray]:
    """The weights of a run, or of a model in transformers' layout."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        if not (run / CONFIG).is_file():
            raise UserError(
                f"weights.run: {run} holds no checkpoint of a run, and no {CONFIG} of transformers"
            )
        return {f"params.{path}": array for path, array in read_arrays(run).items()}
    store = Store(folder)
    try:
        given = store.weights()
    finally:
        store.close()
    if given is None:
        raise UserError(f"weights.run: {run} holds no checkpoint of a run yet")
    return given


def _module(path: str) -> str:
    """A path without `params` or the name of its collection in front."""
    root, _, rest = path.partition(".")
    return rest if root == "params" else rest.partition(".")[2]
