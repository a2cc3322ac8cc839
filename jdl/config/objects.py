"""Describes configuration objects as JSON: import paths and fields, from which they are rebuilt."""

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdl.config.overrides import fields
from jdl.errors import UserError
from jdl.typing import Json

OPAQUE = "opaque"
"""The key of an object that has no description, such as a lambda or an array."""


def describe_object(value: Any) -> Json:
    """Returns a description of a dataclass, a function or a value made of these.

    Classes and functions are named by `module:qualname`. What no import path leads to is described
    as `{"opaque": text}`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return {type(value).__name__: [describe_object(each) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": {str(name): describe_object(each) for name, each in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        described = {
            field.name: describe_object(getattr(value, field.name))
            for field in fields(value)
            if getattr(value, field.name) is not field.default  # such as Flax's initializers
        }
        name = _import_path(type(value))
        return {"class": name, "fields": described} if name else {OPAQUE: type(value).__qualname__}
    name = _import_path(value) if callable(value) else None
    return {"import": name} if name else {OPAQUE: _shown(value)}


def rebuild_object(description: Json, where: str) -> Any:
    """Returns the object that `describe_object` described.

    Args:
      description: of the object.
      where: path of the object, for messages.

    Raises:
      UserError: a part has no description, or its module has changed or cannot be imported.
    """
    if not isinstance(description, Mapping):
        return description
    ((kind, value), *_) = description.items()
    if kind == OPAQUE:
        raise UserError(f"{where} was {value}, which no import path leads to")
    if kind == "dtype":
        return np.dtype(value)
    if kind == "path":
        return Path(value)
    if kind in ("tuple", "list"):
        parts = [rebuild_object(each, f"{where}.{index}") for index, each in enumerate(value)]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {name: rebuild_object(each, f"{where}.{name}") for name, each in value.items()}
    found = _import(value, where)
    if kind == "import":
        return found
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: {value} is not a dataclass")
    known = {
        name: rebuild_object(each, f"{where}.{name}")
        for name, each in description["fields"].items()
    }
    try:
        return found(**known)
    except TypeError as error:
        raise UserError(f"{where}: {value} no longer has the recorded fields: {error}") from error


def is_opaque(description: Json) -> bool:
    """Whether some part of an object has no description."""
    if isinstance(description, list):
        return any(map(is_opaque, description))
    if not isinstance(description, Mapping):
        return False
    return OPAQUE in description or any(map(is_opaque, description.values()))


def _import_path(value: Any) -> str | None:
    """`module:qualname` of a class or function, if importing it gives the same object."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not name:
        return None
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None


def _import(path: str, where: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        place = "the script or notebook that trained it" if module == "__main__" else module
        raise UserError(f"{where} was {name} of {place}, which is not found here") from error
    return found


def _shown(value: Any) -> str:
    return getattr(value, "__qualname__", None) or f"a {type(value).__name__}"
