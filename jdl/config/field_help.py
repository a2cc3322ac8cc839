"""The fields of an experiment as `--help` teaches them."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from jdl.config.overrides import choices, describe, flatten, paths


def field_lines(config: Any) -> Iterator[str]:
    """A line for each settable path: flag, type, present value and what it means."""
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
    """The comment behind a field, or the string below it, in the class's source."""
    for cls in kind.__mro__:
        if name not in vars(cls).get("__annotations__", {}):
            continue
        try:
            source = inspect.getsource(cls)
        except (OSError, TypeError):
            continue
        found = re.search(
            rf"^    {name}\s*:(?P<rest>.*)(?P<next>\n    \"\"\".*?\"\"\")?", source, re.M
        )
        if found and found["next"]:
            return " ".join(found["next"].strip().strip('"').split())
        if found and "# " in found["rest"]:
            return found["rest"].split("# ", 1)[1].strip()
        # A default over several lines carries its comment on the closing one.
        closing = re.search(rf"^    {name}\s*:.*?^    \)  # (?P<doc>[^\n]*)$", source, re.M | re.S)
        return closing["doc"].strip() if closing else ""
    return ""


def _doc(config: Any, path: str) -> str:
    owner, _, name = path.rpartition(".")
    for part in owner.split(".") if owner else []:
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return field_doc(type(config), name) if dataclasses.is_dataclass(config) else ""


def _nested(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, (tuple, dict))
