"""Changing a nest of frozen dataclasses by dotted paths, in Python as on the command line."""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import numpy as np

from jdl.errors import UserError, nearest
from jdl.typing import Json

T = TypeVar("T")


def override(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of `config` with some of its nested fields replaced.

    A path is made of field names, and of indices into tuples: `model.widths.0`. A value is a
    Python value, or the text that the command line would be given. A field that holds one of
    our dataclasses also takes a class by name, `{"optimizer": "sgd"}`: it starts from that class's
    defaults, and a field that has none keeps its old value. Names are set before the fields below
    them; `-` and `_` are alike.

    Raises:
      UserError: no such path, or a value of the wrong type or out of range.
    """
    named = {path.replace("-", "_"): value for path, value in changes.items()}
    for path in sorted(named, key=lambda path: path.count(".")):
        below = {key[len(path) + 1 :]: v for key, v in named.items() if key.startswith(f"{path}.")}
        config = _set(config, path.split("."), named[path], path, below)
    return config


def flatten(config: Any, path: str = "") -> dict[str, Json]:
    """Every leaf of a nest by its path, as JSON; a dataclass also gives the name of its class."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        leaves = {path: snake(type(config).__name__)} if path else {}
        for field in fields(config):
            below = f"{path}.{field.name}" if path else field.name
            leaves |= flatten(getattr(config, field.name), below)
        return leaves
    if isinstance(config, Mapping):
        items = {f"{path}.{key}": value for key, value in config.items()}
    elif isinstance(config, (tuple, list)) and any(map(_nests, config)):
        items = {f"{path}.{index}": value for index, value in enumerate(config)}
    else:
        return {path: _json(config)}
    return {
        key: leaf for below, value in items.items() for key, leaf in flatten(value, below).items()
    }


def fields(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that a user sets: of a Flax module, without `parent` and `name`."""
    hidden = ("parent", "name") if isinstance(config, nn.Module) else ()
    return [
        field for field in dataclasses.fields(config) if field.init and field.name not in hidden
    ]


def paths(config: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Every settable path with its annotation and its present value."""
    found: dict[str, tuple[Any, Any]] = {}
    if dataclasses.is_dataclass(config):
        hints = _hints(type(config))
        children = [(f.name, hints[f.name], getattr(config, f.name)) for f in fields(config)]
    elif isinstance(config, tuple):
        children = [(str(i), _element(None, config, i), value) for i, value in enumerate(config)]
    else:
        return found
    for name, annotation, value in children:
        below = f"{path}.{name}" if path else name
        found[below] = (annotation, value)
        if isinstance(value, tuple):
            element = (_element(annotation, value, i) for i in range(len(value)))
            deeper = paths(value, below)
            direct = {f"{below}.{i}": (kind, value[i]) for i, kind in enumerate(element)}
            found |= deeper | direct
        else:
            found |= paths(value, below)
    return found


def choices(annotation: Any) -> dict[str, type]:
    """Our dataclasses that a field of this type may hold, by their names on the command line."""
    bases: list[type] = [kind for kind in _members(annotation) if dataclasses.is_dataclass(kind)]
    found: dict[str, type] = {}
    queue = list(bases)
    while queue:
        kind = queue.pop(0)
        queue += kind.__subclasses__()
        abstract = kind in bases and kind.__subclasses__()
        if not abstract and not kind.__module__.startswith("flax."):
            found[snake(kind.__name__)] = kind
    return found


def snake(name: str) -> str:
    """`FullySharded` as `fully_sharded`; `TFDS` as `tfds`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def describe(annotation: Any) -> str:
    """A type as help and errors show it."""
    if names := choices(annotation):
        return "|".join(names)
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _set(config: Any, parts: list[str], value: Any, path: str, below: Mapping[str, Any]) -> Any:
    name, rest = parts[0], parts[1:]
    if isinstance(config, (tuple, list)):
        if not name.isdigit() or int(name) >= len(config):
            raise UserError(f"{path}: {name!r} is no index into {len(config)} elements")
        old, annotation = config[int(name)], _element(None, tuple(config), int(name))
    elif dataclasses.is_dataclass(config):
        known = [field.name for field in fields(config)]
        if name not in known:
            hint = nearest(name, known) or f" (it has {', '.join(known)})"
            raise UserError(f"{path}: {type(config).__name__} has no field {name!r}{hint}")
        old, annotation = getattr(config, name), _hints(type(config))[name]
        if rest and isinstance(old, tuple) and rest[0].isdigit() and len(rest) == 1:
            index = int(rest[0])
            if index >= len(old):
                raise UserError(f"{path}: {name} has {len(old)} elements, 0 to {len(old) - 1}")
            new = _convert(_element(annotation, old, index), old[index], value, path, below)
            return _replace(config, name, (*old[:index], new, *old[index + 1 :]))
    else:
        raise UserError(f"{path}: {type(config).__name__} {config!r} has no field {name!r}")
    new = (
        _set(old, rest, value, path, below)
        if rest
        else _convert(annotation, old, value, path, below)
    )
    return _replace(config, name, new)


def _replace(config: Any, name: str, new: Any) -> Any:
    if isinstance(config, (tuple, list)):
        return type(config)(new if i == int(name) else old for i, old in enumerate(config))
    if isinstance(config, nn.Module):
        return config.clone(**{name: new})
    return dataclasses.replace(config, **{name: new})


def _convert(annotation: Any, old: Any, value: Any, path: str, below: Mapping[str, Any]) -> Any:
    """`value`, or what its text means, as the annotation wants it."""
    kinds = choices(annotation)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if kinds and not isinstance(value, tuple(_members(annotation))):
            raise UserError(f"{path}: {type(value).__name__} is not one of {', '.join(kinds)}")
        return value
    if callable(value):
        return value
    tokens = _tokens(value)
    element = _element(annotation, (), 0) if typing.get_origin(annotation) is tuple else None
    if kinds and tokens != ["None"]:
        return _named(kinds, old, tokens, path, below)
    if element is not None and (named := choices(element)):
        return tuple(_named(named, None, [token], path, {}) for token in tokens)
    if Callable in (typing.get_origin(annotation), annotation) or callable(old):
        return _imported(tokens, path)
    if annotation is Any:
        annotation = type(old) if old is not None else str
    return _parse(annotation, tokens, path)


def _named(
    kinds: Mapping[str, type], old: Any, tokens: list[str], path: str, below: Mapping[str, Any]
) -> Any:
    """An instance of the class that a name stands for, with the fields it cannot do without."""
    name = " ".join(tokens)
    wanted = {key.replace("_", ""): kind for key, kind in kinds.items()}.get(
        name.replace("_", "").replace("-", "").lower()
    )
    if wanted is None:
        known = ", ".join(kinds)
        raise UserError(f"{path}: there is no {name!r} (there are {known}){nearest(name, kinds)}")
    if type(old) is wanted:
        return old
    needed = {}
    for field in fields(wanted):
        if field.default is field.default_factory is dataclasses.MISSING:
            if field.name in below:
                hint = _hints(wanted)[field.name]
                needed[field.name] = _convert(
                    hint, None, below[field.name], f"{path}.{field.name}", {}
                )
            elif hasattr(old, field.name):
                needed[field.name] = getattr(old, field.name)
            else:
                raise UserError(f"{path}: {name} also needs {path}.{field.name}")
    return wanted(**needed)


def _parse(annotation: Any, tokens: list[str], path: str) -> Any:
    """Text as a value of the annotated type, by tyro's rules."""
    import tyro

    if str in _members(annotation) and len(tokens) == 1:
        text = tokens[0]
        return None if text == "None" and types.NoneType in _members(annotation) else text
    if bool in _members(annotation):
        tokens = [{"true": "True", "false": "False"}.get(token, token) for token in tokens]
    if set(_members(annotation)) & {list, np.ndarray}:
        raise UserError(f"{path}: arrays and lists are set in the experiment file")
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            return tyro.cli(annotation, args=tokens)
    except SystemExit:
        shown = " ".join(tokens)
        raise UserError(f"{path}: {shown!r} is not of type {describe(annotation)}") from None


def _imported(tokens: list[str], path: str) -> Any:
    """The function that a dotted name such as `flax.linen.gelu` stands for."""
    module, _, name = " ".join(tokens).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        shown = " ".join(tokens)
        raise UserError(
            f"{path}: {shown!r} is no function; write its full name, such as flax.linen.gelu"
        ) from error


def _tokens(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence):
        return [str(item) for item in value]
    return [str(value)]


def _members(annotation: Any) -> list[type]:
    """The classes of a union, or the one class of a plain annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    origin = typing.get_origin(annotation) or annotation
    return [origin] if isinstance(origin, type) else []


def _element(annotation: Any, values: tuple[Any, ...], index: int) -> Any:
    """The type of a tuple's element: as annotated, else that of the element there."""
    args = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else ()
    if args:
        return args[0] if len(args) == 2 and args[1] is Ellipsis else args[index]
    return type(values[index])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _nests(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list)) or dataclasses.is_dataclass(value)


def _json(value: Any) -> Json:
    """A leaf for reading and comparing; nothing is ever built from it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_json(item) for item in value]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        import hashlib

        array = np.ascontiguousarray(value)
        return (
            f"{array.dtype}{list(array.shape)} sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"
        )
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    return f"{value.__module__}.{name}" if callable(value) and name else str(value)
