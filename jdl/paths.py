"""Paths of parameters and modules, such as `encoder.Dense_1.kernel`."""

from collections.abc import Iterable
from typing import Any

import jax

from jdl.errors import UserError, nearest


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a `jax.tree_util` path as names joined by dots: `params.Dense_0.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def within(path: str, modules: Iterable[str]) -> bool:
    """Returns whether a parameter belongs to one of the modules, or is one of the names."""
    return any(f"{path}.".startswith(f"{name}.") for name in modules)


def check_modules(paths: Iterable[str], names: Iterable[str]) -> None:
    """Raises a UserError if no parameter belongs to one of `names`; suggests the nearest name.

    Args:
      paths: of all parameters.
      names: modules or parameters, by path.
    """
    parts = [path.split(".") for path in paths]
    known = list(dict.fromkeys(".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)))
    for name in names:
        if name not in known:
            top = ", ".join(path for path in known if "." not in path)
            raise UserError(
                f"the model has no module {name!r} (it has {top}){nearest(name, known)}"
            )
