"""Converts between the config.json of Hugging Face transformers and fields of jdl's models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from jdl.errors import UserError, first_line, nearest
from jdl.pretrained.layouts import ACTIVATIONS, LABELS, LAYOUTS, Entry, Layout
from jdl.typing import Json

CONFIG = "config.json"
IMAGE = {"image_size": 224, "num_channels": 3}
"""Entries of image models, with the defaults of transformers."""


def read_config(directory: Path) -> tuple[Layout, dict[str, Json]]:
    """Reads config.json: the model's layout, and the entries with defaults filled in.

    Raises:
      UserError: there is none, or jdl has no such model.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{directory} holds no {CONFIG}")
    try:
        given = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no JSON: {first_line(error)}") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} holds no JSON object")
    layout = _layout(given.get("model_type"), path)
    defaults = {entry.key: entry.default for entry in layout.entries}
    images = IMAGE if layout.images else {}
    config = {**defaults, **images, **layout.required, **given}
    for key, default in images.items():
        _check(key, config[key], default, path)
    wrong = [
        f"{key} is {config[key]!r}, where it has {value!r}"
        for key, value in layout.required.items()
        if config[key] != value
    ]
    if wrong:
        raise UserError(f"jdl's {_name(layout)} cannot be the model of {path}: {'; '.join(wrong)}")
    return layout, config


def read_model(layout: Layout, config: Mapping[str, Json], path: Path) -> nn.Module:
    """Builds the model from its config, except for the head.

    Raises:
      UserError: an entry has an invalid or unsupported value.
    """
    fields: dict[str, Any] = {}
    for entry in layout.entries:
        fields.setdefault(entry.field, _value(entry, config[entry.key], path))
    if fields["embed_dim"] % fields["num_heads"]:
        raise UserError(
            f"{path}: a width of {fields['embed_dim']} cannot be split into "
            f"{fields['num_heads']} heads"
        )
    if fields["mlp_dim"] == 4 * fields["embed_dim"]:
        fields["mlp_dim"] = None
    return layout.model(**fields)


def read_head(layout: Layout, config: Mapping[str, Json], path: Path) -> dict[str, Any]:
    """Returns the fields that define the model's head.

    Raises:
      UserError: its class is not supported.
    """
    named = config.get("architectures") or ["nothing"]
    name = str(named[0] if isinstance(named, list) else named)
    if name not in layout.architectures:
        raise UserError(
            f"{path}: architectures names {name}, where jdl reads "
            f"{_among(layout.architectures)}{nearest(name, layout.architectures)}"
        )
    fields = layout.architectures[name]
    return {field: labels(config) if v is LABELS else v for field, v in fields.items()}


def labels(config: Mapping[str, Json]) -> int:
    """The number of classes: from `id2label`, else `num_labels`, else two."""
    named, count = config.get("id2label"), config.get("num_labels")
    if named and isinstance(named, dict):
        return len(named)
    return count if isinstance(count, int) and count > 0 else 2


def write_config(model: Any) -> tuple[Layout, dict[str, Json]]:
    """Returns a jdl model's layout and its config.json, without the entries of `IMAGE`.

    Raises:
      UserError: there is no such layout, or it cannot represent the model.
    """
    found = [layout for layout in LAYOUTS if type(model) is layout.model]
    if not found:
        known = _among(_name(layout) for layout in LAYOUTS)
        raise UserError(f"transformers' layout is that of {known}, not of {type(model).__name__}")
    (layout,) = found
    if wrong := _unsayable(layout, model):
        raise UserError(
            f"the layout of {layout.kind} cannot say of {_name(layout)}: {'; '.join(wrong)}"
        )
    hidden = model.mlp_dim or 4 * model.embed_dim
    special = {"activation": _activations(model)[0], "mlp_dim": hidden}
    config: dict[str, Json] = {
        "architectures": _architectures(layout, model)[:1],
        "model_type": layout.kind,
        **{e.key: special.get(e.field, getattr(model, e.field)) for e in layout.entries},
        **layout.written,
    }
    if count := getattr(model, "num_classes", None):
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return layout, config


def _unsayable(layout: Layout, model: Any) -> list[str]:
    """Lists fields of a model whose values its layout cannot represent."""
    wrong = [
        f"{field}={getattr(model, field)!r}, where it means {value!r}"
        for field, value in layout.fixed.items()
        if getattr(model, field) != value
    ]
    if not _activations(model):
        wrong.append(f"activation={getattr(model.activation, '__name__', model.activation)}")
    if not _architectures(layout, model):
        wrong.append(f"num_classes={model.num_classes}")
    return wrong


def _activations(model: Any) -> list[str]:
    """Names of the model's activation in transformers; empty if unknown there."""
    return [name for name, function in ACTIVATIONS.items() if function is model.activation]


def _architectures(layout: Layout, model: Any) -> list[str]:
    """Classes of transformers with the model's head."""

    def fits(field: str, value: Any) -> bool:
        given = getattr(model, field)
        return bool(given) if value is LABELS else given == value

    return [
        name
        for name, fields in layout.architectures.items()
        if all(fits(field, value) for field, value in fields.items())
    ]


def _layout(kind: Json, path: Path) -> Layout:
    known = {layout.kind: layout for layout in LAYOUTS}
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"{path}: model_type is {kind!r}, where jdl reads {_among(known)}"
            f"{nearest(str(kind), known)}"
        )
    return known[kind]


def _value(entry: Entry, value: Json, path: Path) -> Any:
    """Converts and validates the value of an entry."""
    if entry.field == "activation":
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UserError(
                f"{path}: {entry.key} is {value!r}, where jdl reads {_among(ACTIVATIONS)}"
                f"{nearest(str(value), ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]
    _check(entry.key, value, entry.default, path)
    return value


def _check(key: str, value: Json, default: Json, path: Path) -> None:
    """Raises a UserError unless the value has the default's type and a valid range."""
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and 0 <= value < 1
        kind = "a number in [0, 1)"
    else:
        least, kind = (0, "a token") if default == 0 else (1, "a size")
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
        fits = whole or (value is None and default is None)
    if not fits:
        raise UserError(f"{path}: {key} is {value!r}, where {kind} belongs")


def _name(layout: Layout) -> str:
    return layout.model.__name__


def _among(names: Any) -> str:
    *rest, last = sorted(names)
    return f"{', '.join(rest)} and {last}" if rest else last
