"""Forms of an operation for `jax.lax.platform_dependent`, which picks one when it is lowered."""

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def bind(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`functools.partial`, the same object for the same options.

    JAX traces every form of every call; a form that it has traced before, such as that of the
    previous layer, it recognizes by identity.
    """
    return functools.partial(function, **options)
