"""Mistakes that a user can mend, each said in one clear sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for; the command line prints it without a traceback."""


def first_line(error: BaseException) -> str:
    """What an error says, without further lines; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the candidate most like `name`, or an empty string."""
    same = {candidate.replace("-", "_").lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.replace("-", "_").lower(), same, n=1, cutoff=0.5)
    return f"; did you mean {same[found[0]]!r}?" if found else ""
