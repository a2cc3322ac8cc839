"""Errors that users can fix."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """An error in the user's input, in one sentence; the CLI prints it without a traceback."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the candidate most like `name`, or an empty string."""
    same = {candidate.replace("-", "_").lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.replace("-", "_").lower(), same, n=1, cutoff=0.5)
    return f"; did you mean {same[found[0]]!r}?" if found else ""


def install_command(extra: str) -> str:
    """Returns the command that installs an extra of jdl: from a checkout, or by its name.

    A checkout is the working directory, or where the package itself is.

    Args:
      extra: name of an optional dependency in `pyproject.toml`.
    """
    here, home = Path.cwd(), Path(__file__).parents[1]
    if _is_checkout(here):
        return f'pip install ".[{extra}]"'
    if _is_checkout(home):
        return f'pip install ".[{extra}]" in {home}'
    return f'pip install "jdl-research[{extra}]"'


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    try:
        return 'name = "jdl-research"' in project.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
