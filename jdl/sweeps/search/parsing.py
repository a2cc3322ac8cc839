"""Dimensions from words of the command line."""

from collections.abc import Sequence
from typing import Any

from jdl.errors import UserError, nearest
from jdl.sweeps.search.dimensions import Choice, Dimension, Int, LogUniform, Uniform


def parse(words: Sequence[str]) -> dict[str, Dimension]:
    """A space from words such as `optimizer.learning-rate=log:1e-4:1e-1`.

    Kinds are `int:LOW:HIGH[:STEP]`, `uniform:LOW:HIGH[:STEP]`, `log:LOW:HIGH` and
    `choice:A,B,...`.

    Raises:
      UserError: a word has another form.
    """
    return {
        path.replace("-", "_"): _dimension(path, kind, text)
        for path, kind, text in map(_split, words)
    }


def _split(word: str) -> tuple[str, str, str]:
    path, equals, rest = word.partition("=")
    kind, colon, text = rest.partition(":")
    if not (path and equals and colon):
        raise UserError(
            f"--space {word}: write PATH=KIND:..., as optimizer.learning-rate=log:1e-4:1e-1"
        )
    return path, kind, text


def _dimension(path: str, kind: str, text: str) -> Dimension:
    kinds: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
        "int": (Int, int, (2, 3)),
        "uniform": (Uniform, float, (2, 3)),
        "log": (LogUniform, float, (2,)),
    }
    if kind == "choice":
        return Choice(*(_literal(part) for part in text.split(",")))
    if kind not in kinds:
        known = ", ".join([*kinds, "choice"])
        hint = nearest(kind, [*kinds, "choice"])
        raise UserError(f"--space {path}: there is no kind {kind!r} (there are {known}){hint}")
    build, read, counts = kinds[kind]
    parts = text.split(":")
    try:
        numbers = [read(part) for part in parts]
    except ValueError:
        raise UserError(f"--space {path}: {text!r} are not numbers for {kind!r}") from None
    if len(parts) not in counts:
        raise UserError(
            f"--space {path}: {kind} takes {' or '.join(map(str, counts))} numbers, not {text!r}"
        )
    return build(*numbers)


def _literal(text: str) -> Any:
    """A number where the text is one, else the text, as `override` takes it."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text
