"""JAX's persistent compilation cache."""

import functools
from pathlib import Path

import jax

from jdl.caches import private_cache

MIN_COMPILE_SECONDS = 0.1
"""Programs that compile faster than this many seconds are not cached."""


@functools.cache
def enable_compilation_cache() -> Path | None:
    """Enables JAX's compilation cache in a private directory of this user.

    The directory is `jdl/compiled` in `$XDG_CACHE_HOME` or `~/.cache`, mode 0700: anyone who can
    write there can run code in this process. It can be deleted at any time. JAX's own settings take
    precedence: `JAX_COMPILATION_CACHE_DIR` for another directory,
    `JAX_ENABLE_COMPILATION_CACHE=false` for none.

    Returns:
      The directory, or None where JAX is configured otherwise or the directory is not private.
    """
    config = jax.config
    own = config.values["jax_compilation_cache_dir"]
    if own or not config.values["jax_enable_compilation_cache"]:
        return None
    directory = private_cache("compiled", "compiled programs")
    if directory is None:
        return None
    config.update("jax_compilation_cache_dir", str(directory))
    config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return directory
