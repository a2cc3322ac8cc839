"""Reads the docstrings of jdl as they are written, for the API pages.

Fields are explained by a comment or a string, as `--help` shows them: they become a table. What a
subclass documents as "See `Base.method`." is left out. A
line under `Returns:` that begins with no name continues the line before it.
"""

import io
import re
import textwrap
import tokenize
from pathlib import Path
from typing import Any

import griffe

REFERENCE = re.compile(r"(See|As in) `[\w.]+`\.")
RETURNS = re.compile(r"^Returns:\n((?:  .*\n?)+)", re.MULTILINE)
CONTINUED = re.compile(r"\n  (?! )(?!\w+(?:, \w+)*: )")


class Docstrings(griffe.Extension):
    """Prepares docstrings for griffe's parser of the Google style."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Called for each function once it has been read."""
        if func.docstring is None:
            return
        if REFERENCE.fullmatch(func.docstring.value):
            func.docstring = None
        else:
            func.docstring.value = RETURNS.sub(
                lambda match: CONTINUED.sub("\n    ", match[0]), func.docstring.value
            )

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for each class once its members have been read."""
        lines = []
        for name, member in cls.members.items():
            if not isinstance(member, griffe.Attribute) or name.startswith("_"):
                continue
            if "property" in member.labels:
                continue
            words = member.docstring.value if member.docstring else _comment(member)
            if words and member.value is not None and not _decorated(cls):
                words += f"; by default `{member.value}`"
            if words:
                member.docstring = None  # said in the table, not once more below it
                lines.append(f"  {name}: {' '.join(words.split())}")
        if lines and cls.docstring:
            cls.docstring.value += "\n\n" + "\n".join(["Attributes:", *lines])


def _decorated(cls: griffe.Class) -> bool:
    """Whether a class is a dataclass, whose signature shows defaults; a Flax module is not."""
    return any("dataclass" in str(decorator.value) for decorator in cls.decorators)


def _comment(field: griffe.Attribute) -> str:
    """The comment behind a field, whose default may take several lines, or else that above it."""
    source = textwrap.dedent("\n".join(field.lines))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = [token.string for token in tokens if token.type == tokenize.COMMENT]
    if behind:
        return behind[-1].lstrip("# ")
    assert isinstance(field.filepath, Path)
    lines = field.lines_collection[field.filepath]
    above: list[str] = []
    for line in reversed(lines[: (field.lineno or 1) - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)
