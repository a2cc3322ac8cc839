"""Describes the fields of an experiment for `--help`."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from jdl.config.overrides import choices, describe, flatten, paths


def field_lines(config: Any) -> Iterator[str]:
    """Yields flag, type and current value of each settable path, then its description."""
    for path, (annotation, value) in paths(config).items():
        if value is None or not isinstance(value, (tuple, dict)):
            shown = next(iter(flatten(value, "_").values())) if value is not None else None
        else:
            shown = f"{len(value)} elements" if any(map(_nested, value)) else list(value)
        kind = "|".join(choices(annotation)) or describe(annotation)
        kind = kind if len(kind) <= 40 else kind[:37] + "..."
        flag = f"--{path.replace('_', '-')}"
        yield f"  {flag} {kind}  [{shown}]" + (
            f"\n      {doc}" if (doc := _doc(config, path)) else ""
        )


def field_doc(kind: type, name: str) -> str:
    """The docstring below a field in the class's source, or its trailing comment."""
    for cls in kind.__mro__:
        if name not in vars(cls).get("__annotations__", {}):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):  # no source, as in a notebook
            continue
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise([*definition.body, ast.Pass()]):
            if not (isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                return " ".join(str(below.value.value).split())
            assert field.end_lineno is not None
            line = source.splitlines()[field.end_lineno - 1].encode()[field.end_col_offset :]
            return line.decode().partition("# ")[2].strip()
    return ""


def _doc(config: Any, path: str) -> str:
    owner, _, name = path.rpartition(".")
    for part in owner.split(".") if owner else []:
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return field_doc(type(config), name) if dataclasses.is_dataclass(config) else ""


def _nested(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, (tuple, dict))
