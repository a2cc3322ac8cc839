"""Substitutes traced arrays for numbers in an experiment."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn

T = TypeVar("T")


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """Returns a copy of nested frozen dataclasses with other values at some paths, unchecked.

    Unlike `jdl.override`, which parses and validates, it accepts traced arrays.

    Args:
      config: a dataclass, Flax module or tuple, nested.
      values: new values by path, as in `jdl.override`.
    """
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        below.setdefault(name, {})[rest] = value
    new = {
        name: rest[""] if "" in rest else with_values(_child(config, name), rest)
        for name, rest in below.items()
    }
    return _replaced(config, new)


def _child(config: Any, name: str) -> Any:
    return config[int(name)] if isinstance(config, tuple) else getattr(config, name)


def _replaced(config: Any, new: Mapping[str, Any]) -> Any:
    if isinstance(config, tuple):
        return tuple(new.get(str(index), old) for index, old in enumerate(config))
    if isinstance(config, nn.Module):
        return config.clone(**new)
    assert dataclasses.is_dataclass(config)
    changed = copy.copy(
        config
    )  # without __post_init__, whose comparisons a traced array would fail
    for name, value in new.items():
        object.__setattr__(changed, name, value)
    return changed
