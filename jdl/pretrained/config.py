"""Converts between the config.json of Hugging Face transformers and fields of jdl's models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn

from jdl.errors import UserError, first_line, nearest
from jdl.pretrained.layouts import ACTIVATIONS, LABELS, LAYOUTS, Entry, Layout
from jdl.typing import Json

T = TypeVar("T")

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
        raise UserError(f"{directory} has no {CONFIG}: give a directory that transformers saved")
    try:
        given = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} is not a JSON object")
    layouts = {layout.kind: layout for layout in LAYOUTS}
    layout = _supported(layouts, "model_type", given.get("model_type"), path)
    defaults = {entry.key: entry.default for entry in layout.entries}
    images = IMAGE if layout.images else {}
    config = {**defaults, **images, **layout.required, **given}
    for key, default in images.items():
        _check(key, config[key], default, path)
    wrong = [
        f"{key}={config[key]!r}, not {value!r}"
        for key, value in layout.required.items()
        if config[key] != value
    ]
    if wrong:
        raise UserError(f"{path} is of a model that jdl does not have: {'; '.join(wrong)}")
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
        sizes = f"{fields['embed_dim']} cannot be divided by {fields['num_heads']} heads"
        raise UserError(f"{path}: a hidden size of {sizes}")
    if fields["mlp_dim"] == 4 * fields["embed_dim"]:
        fields["mlp_dim"] = None
    return layout.model(**fields)


def read_head(layout: Layout, config: Mapping[str, Json], path: Path) -> dict[str, Any]:
    """Returns the fields that define the model's head.

    Raises:
      UserError: its class is not supported.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else named
    fields = _supported(layout.architectures, "architectures", name, path)
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
    layout = next((layout for layout in LAYOUTS if type(model) is layout.model), None)
    if layout is None:
        known = ", ".join(sorted(layout.model.__name__ for layout in LAYOUTS))
        name = type(model).__name__
        raise UserError(f"{name} has no format of transformers; models that have one: {known}")
    if wrong := _unsupported(layout, model):
        raise UserError(f"transformers' {layout.kind} does not support {'; '.join(wrong)}")
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


def _unsupported(layout: Layout, model: Any) -> list[str]:
    """Lists fields of a model whose values its layout cannot represent."""
    wrong = [
        f"{field}={getattr(model, field)!r} (only {value!r})"
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


def _supported(known: Mapping[str, T], key: str, value: Json, path: Path) -> T:
    """Returns what an entry's value names; raises a UserError if that is not supported."""
    if not isinstance(value, str) or value not in known:
        raise UserError(
            f"{path}: {key} {value!r} is not supported; supported: {', '.join(sorted(known))}"
            f"{nearest(str(value), known)}"
        )
    return known[value]


def _value(entry: Entry, value: Json, path: Path) -> Any:
    """Converts and validates the value of an entry."""
    if entry.field == "activation":
        return _supported(ACTIVATIONS, entry.key, value, path)
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
        least = 0 if default == 0 else 1
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
        fits, kind = whole or (value is None and default is None), f"an integer from {least}"
    if not fits:
        raise UserError(f"{path}: {key} must be {kind}, not {value!r}")
