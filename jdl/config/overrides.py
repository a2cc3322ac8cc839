"""Overrides fields of nested frozen dataclasses by dotted paths (Python and CLI)."""

import collections.abc
import contextlib
import dataclasses
import functools
import importlib
import io
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import flax.linen as nn
import numpy as np

from jdl.config.functions import identify
from jdl.errors import UserError, nearest
from jdl.typing import Json

T = TypeVar("T")

UNIONS = (typing.Union, types.UnionType)


def override(config: T, changes: Mapping[str, Any]) -> T:
    """Returns a copy of `config` with nested fields replaced.

    A path consists of field names and tuple indices: `model.widths.0`. A value is a Python value
    or text as on the command line. A field that holds one of jdl's dataclasses also takes a class
    by name, `{"optimizer": "sgd"}`: it starts from that class's defaults, and a field without one
    keeps its old value. Names are set before the fields below them; `-` and `_` are equivalent.

    Raises:
      UserError: a path does not exist, or a value has the wrong type or is out of range.
    """
    named = {tuple(path.replace("-", "_").split(".")): value for path, value in changes.items()}
    return _changed(config, type(config), named, "")


def as_flags(changes: Mapping[str, Any]) -> list[str]:
    """Returns overrides as words of a command line."""
    words: list[str] = []
    for path, value in changes.items():
        flag = f"--{path.replace('_', '-')}"
        values = list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]
        dashed = len(values) == 1 and values[0].startswith("--")
        words += [f"{flag}={values[0]}"] if dashed else [flag, *values]
    return words


def flatten(config: Any, path: str = "") -> dict[str, Json]:
    """Flattens nested dataclasses to JSON by path; a dataclass's own path holds its class."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        leaves = {path: snake(type(config).__name__)} if path else {}
        for field in fields(config):
            below = f"{path}.{field.name}" if path else field.name
            leaves |= flatten(getattr(config, field.name), below)
        return leaves
    if isinstance(config, Mapping):
        items = {f"{path}.{key}": value for key, value in config.items()}
    elif _is_sequence(config) and any(map(_nests, config)):
        items = {f"{path}.{index}": value for index, value in enumerate(config)}
    else:
        return {path: _json(config)}
    return {
        key: leaf for below, value in items.items() for key, leaf in flatten(value, below).items()
    }


def fields(config: Any) -> list[dataclasses.Field[Any]]:
    """The settable fields: for a Flax module, all except `parent` and `name`."""
    hidden = ("parent", "name") if isinstance(config, nn.Module) else ()
    return [
        field for field in dataclasses.fields(config) if field.init and field.name not in hidden
    ]


def paths(config: Any, path: str = "", annotation: Any = None) -> dict[str, tuple[Any, Any]]:
    """Every settable path below `path` with its annotation and current value."""
    found: dict[str, tuple[Any, Any]] = {}
    if dataclasses.is_dataclass(config):
        names = [field.name for field in fields(config)]
    else:
        indexed = isinstance(config, tuple) and _is_sequence(config)
        names = list(map(str, range(len(config)))) if indexed else []
    for name in names:
        below = f"{path}.{name}" if path else name
        kind, value = _child(config, annotation, name, below)
        found |= {below: (kind, value)} | paths(value, below, kind)
    return found


def choices(annotation: Any) -> dict[str, type]:
    """The dataclasses that a field of this type accepts, by name on the command line.

    For a Flax module these are the models, of `jdl.models` and of the experiment's own file.
    """
    members = _members(annotation)
    if nn.Module in members:
        importlib.import_module("jdl.models")  # registers its classes as subclasses
    bases: list[type] = [
        kind for kind in members if kind is nn.Module or dataclasses.is_dataclass(kind)
    ]
    found: dict[str, type] = {}
    queue = list(bases)
    while queue:
        kind = queue.pop(0)
        queue += kind.__subclasses__()
        abstract = kind in bases and kind.__subclasses__()
        part = kind.__module__.startswith(("flax.", "jdl.layers."))
        if not abstract and not part:
            found[snake(kind.__name__)] = kind
    return found


def snake(name: str) -> str:
    """`FullySharded` as `fully_sharded`; `TFDS` as `tfds`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def describe(annotation: Any) -> str:
    """A type as shown in help and errors."""
    if names := choices(annotation):
        return "|".join(names)
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in UNIONS:
        kinds = filter(_is_set_as_text, typing.get_args(annotation))
        return "|".join("None" if kind is types.NoneType else describe(kind) for kind in kinds)
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _changed(
    config: Any, annotation: Any, changes: Mapping[tuple[str, ...], Any], path: str
) -> Any:
    """Applies all changes at once, so that their order does not matter."""
    new: dict[str, Any] = {}
    for name in dict.fromkeys(parts[0] for parts in changes):
        full = f"{path}.{name}" if path else name
        whole = next(".".join(parts) for parts in changes if parts[0] == name)
        kind, value = _child(config, annotation, name, f"{path}.{whole}" if path else whole)
        below = {parts[1:]: v for parts, v in changes.items() if parts[0] == name and parts[1:]}
        if (name,) in changes:
            value = _convert(kind, value, changes[(name,)], full, below)
        new[name] = _changed(value, kind, below, full) if below else value
    return _replace(config, new)


def _child(config: Any, annotation: Any, name: str, path: str) -> tuple[Any, Any]:
    """Annotation and current value of a field, or of an element of a tuple so annotated."""
    if _is_sequence(config):
        if not name.isdigit() or int(name) >= len(config):
            raise UserError(f"{path}: {name!r} is not the index of one of {len(config)} elements")
        value = config[int(name)]
        args = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else ()
        if not args:
            return type(value), value
        return element_kind(annotation) or args[int(name)], value
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UserError(f"{path}: a value of type {type(config).__name__} has no field {name!r}")
    known = [field.name for field in fields(config)]
    if name not in known:
        hint = nearest(name, known) or f" (it has {', '.join(known)})"
        raise UserError(f"{path}: {type(config).__name__} has no field {name!r}{hint}")
    return _hints(type(config))[name], getattr(config, name)


def _replace(config: Any, new: Mapping[str, Any]) -> Any:
    if isinstance(config, (tuple, list)):
        return type(config)(new.get(str(i), old) for i, old in enumerate(config))
    if isinstance(config, nn.Module):
        return config.clone(**new)
    return dataclasses.replace(config, **new)


def _convert(
    annotation: Any, old: Any, value: Any, path: str, below: Mapping[tuple[str, ...], Any]
) -> Any:
    """Converts a value, or its text, to the annotated type."""
    kinds, members = choices(annotation), tuple(_members(annotation))
    element = element_kind(annotation)
    accepts_functions = collections.abc.Callable in members
    function = (accepts_functions and len(members) == 1) or (
        callable(old) and not dataclasses.is_dataclass(old) and not accepts_functions
    )
    if isinstance(value, (tuple, list)) and element is not None:
        if not value:
            return ()
        if any(not isinstance(item, (str, int, float, bool)) for item in value):
            items = enumerate(value)
            return tuple(_convert(element, None, v, f"{path}.{i}", {}) for i, v in items)
    if isinstance(value, type) and not (function or annotation is Any):
        raise UserError(f"{path}: {value.__name__} is a class, not one of its instances")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not (function or annotation is Any or isinstance(value, members)):
            raise UserError(f"{path}: {type(value).__name__} is not of type {describe(annotation)}")
        return value
    if callable(value) or (isinstance(value, members) and hasattr(value, "_fields")):
        if not (function or accepts_functions or annotation is Any or isinstance(value, members)):
            raise UserError(f"{path}: a function is not of type {describe(annotation)}")
        return value
    tokens = _tokens(value)
    if kinds and tokens != ["None"]:
        return _named(kinds, old, tokens, path, below)
    if element is not None and (named := choices(element)):
        return tuple(_named(named, None, [token], path, {}) for token in tokens)
    if function:
        return _imported(tokens, path)
    if annotation is Any:
        annotation = type(old) if old is not None else str
    return parse_value(annotation, tokens, path)


def _named(
    kinds: Mapping[str, type],
    old: Any,
    tokens: list[str],
    path: str,
    below: Mapping[tuple[str, ...], Any],
) -> Any:
    """Creates an instance of the named class; required fields come from overrides or `old`."""
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
            if (field.name,) in below:
                hint, given = _hints(wanted)[field.name], below[(field.name,)]
                needed[field.name] = _convert(hint, None, given, f"{path}.{field.name}", {})
            elif hasattr(old, field.name):
                needed[field.name] = getattr(old, field.name)
            else:
                raise UserError(f"{path}: {name} also needs {path}.{field.name}")
    return wanted(**needed)


def parse_value(annotation: Any, tokens: list[str], path: str) -> Any:
    """Parses text as the annotated type by tyro's rules."""
    import tyro

    kinds = [kind for kind in typing.get_args(annotation) if _is_set_as_text(kind)]
    if typing.get_origin(annotation) in UNIONS and len(kinds) < len(typing.get_args(annotation)):
        return parse_value(typing.Union[tuple(kinds)], tokens, path)  # noqa: UP007
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
    """Imports the function of a dotted name such as `flax.linen.gelu`."""
    module, _, name = " ".join(tokens).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        found = None
    dtype = hasattr(found, "dtype")  # jax.numpy.bfloat16 is a class, but allowed
    if not callable(found) or (isinstance(found, type) and not dtype):
        shown = " ".join(tokens)
        raise UserError(
            f"{path}: {shown!r} is not a function: write its full name, such as flax.linen.gelu"
        )
    return found


def _tokens(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence):
        return [str(item) for item in value]
    return [str(value)]


def _is_set_as_text(annotation: Any) -> bool:
    """Whether a type is neither that of a function nor of an Optax transformation."""
    members = _members(annotation)
    return collections.abc.Callable not in members and not any(
        hasattr(m, "_fields") for m in members
    )


def _members(annotation: Any) -> list[type]:
    """The classes of a union, or the one class of a plain annotation."""
    if typing.get_origin(annotation) in UNIONS:
        return [kind for part in typing.get_args(annotation) for kind in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    origin = typing.get_origin(annotation) or annotation
    # Any is a class in Python 3.11.
    return [origin] if isinstance(origin, type) and origin is not Any else []


def element_kind(annotation: Any) -> Any:
    """The type of the elements of an annotated tuple of any length; None for other types."""
    args = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else ()
    return args[0] if len(args) == 2 and args[1] is Ellipsis else None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_sequence(value: Any) -> TypeGuard[tuple[Any, ...] | list[Any]]:
    """Whether a value has elements to set; the functions of an Optax transformation are none."""
    return isinstance(value, (tuple, list)) and not hasattr(value, "_fields")


def _nests(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list)) or dataclasses.is_dataclass(value)


def _json(value: Any) -> Json:
    """Converts a leaf to JSON, for reading and comparing only."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if _is_sequence(value):
        return [_json(item) for item in value]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        import hashlib

        array = np.ascontiguousarray(value)
        # The bytes of an array of objects are addresses.
        text = str([_json(item) for item in array.flat]) if array.dtype.hasobject else None
        digest = hashlib.sha256(array.tobytes() if text is None else text.encode()).hexdigest()
        return f"{array.dtype}{list(array.shape)} sha256:{digest}"
    return identify(value) if callable(value) or hasattr(value, "_fields") else str(value)
