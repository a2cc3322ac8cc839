"""Forms of operations for `jax.lax.platform_dependent`, which picks one when it is lowered."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

_PORTABLE = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces operations without forms that `jax.export` does not serialize, such as cuDNN's."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def is_portable() -> bool:
    """Whether the program that is traced will be serialized."""
    return _PORTABLE.get()


@functools.cache
def bind(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`functools.partial`, the same object for the same options.

    JAX traces every form of every call; a form that it has traced before, such as that of the
    previous layer, it recognizes by identity.
    """
    return functools.partial(function, **options)
