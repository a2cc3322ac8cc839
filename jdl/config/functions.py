"""Identifies functions made by other functions, such as Optax transformations and schedules."""

import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from jdl.typing import FILE_MODULE


def identify(value: Any) -> str:
    """Returns the name of a function or object, with a hash of what it closes over, if anything.

    `optax.adamw(1e-3)` and `optax.adamw(1e-4)` consist of functions of the same names, and differ
    in the hash. Names from an experiment file lack the file's module, which depends on its path.
    """
    held = _held(value)
    if not held:
        return _name(value)
    return f"{_name(value)} sha256:{hashlib.sha256(_text(held, ()).encode()).hexdigest()[:16]}"


def _name(value: Any) -> str:
    owner = value if hasattr(value, "__qualname__") or hasattr(value, "__name__") else type(value)
    name = getattr(owner, "__qualname__", None) or owner.__name__
    module = owner.__module__ or "builtins"
    return name if module.startswith(FILE_MODULE) else f"{module}.{name}"


def _held(value: Any) -> Any:
    """What a function closes over, its defaults included, or what an object holds."""
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if inspect.ismethod(value):
        return value.__func__, value.__self__
    if isinstance(value, (tuple, list, set, frozenset, Mapping)):
        return value
    function = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(function):
        closed = {**inspect.getclosurevars(function).nonlocals}
        return {**closed, **dict(enumerate(function.__defaults__ or ()))}
    return None if isinstance(value, type) else getattr(value, "__dict__", None)


def _text(value: Any, inside: tuple[int, ...]) -> str:
    """A text that is the same in every process for equal values."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if id(value) in inside:  # a function that calls itself
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        items = sorted((str(key), _text(each, inside)) for key, each in value.items())
        return f"{{{', '.join(f'{key}: {each}' for key, each in items)}}}"
    if isinstance(value, (tuple, list, set, frozenset)):
        parts = [_text(each, inside) for each in value]
        return f"({', '.join(parts if isinstance(value, (tuple, list)) else sorted(parts))})"
    held = _held(value)
    return f"{_name(value)}{_text(held, inside) if held else ''}"
