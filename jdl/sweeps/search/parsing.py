"""Parses dimensions from `--space PATH=KIND:...`."""

from collections.abc import Sequence
from typing import Any

from jdl.errors import UserError, nearest
from jdl.sweeps.search.dimensions import Choice, Dimension, Int, LogUniform, Uniform

KINDS: dict[str, tuple[Any, Any, str]] = {
    "int": (Int, int, "LOW:HIGH[:STEP]"),
    "uniform": (Uniform, float, "LOW:HIGH[:STEP]"),
    "log": (LogUniform, float, "LOW:HIGH"),
}


def parse_space(flags: Sequence[str]) -> dict[str, Dimension]:
    """Parses flags such as `optimizer.learning-rate=log:1e-4:1e-1` to dimensions by path.

    Kinds are `int:LOW:HIGH[:STEP]`, `uniform:LOW:HIGH[:STEP]`, `log:LOW:HIGH` and
    `choice:A,B,...`.

    Raises:
      UserError: a flag has another form.
    """
    return dict(map(_parse, flags))


def _parse(flag: str) -> tuple[str, Dimension]:
    path, _, rest = flag.partition("=")
    kind, colon, text = rest.partition(":")
    if not (path and colon):
        raise UserError(
            f"--space {flag}: write PATH=KIND:..., as optimizer.learning-rate=log:1e-4:1e-1"
        )
    field = path.replace("-", "_")
    if kind == "choice":
        return field, Choice(*map(_literal, text.split(",")))
    if kind not in KINDS:
        known = [*KINDS, "choice"]
        raise UserError(
            f"--space {path}: there is no kind {kind!r} (there are {', '.join(known)})"
            f"{nearest(kind, known)}"
        )
    dimension, number, form = KINDS[kind]
    try:
        return field, dimension(*map(number, text.split(":")))
    except (ValueError, TypeError):  # not numbers, or not that many
        raise UserError(f"--space {path}: {kind} takes numbers {form}, not {text!r}") from None


def _literal(text: str) -> Any:
    """A number if the text is one, else the text, as `override` reads it."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text
