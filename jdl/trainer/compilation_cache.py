"""What was compiled is kept for the next process."""

import functools
import logging
import os
from pathlib import Path

import jax

_log = logging.getLogger(__name__)

MIN_COMPILE_SECONDS = 0.1
"""Seconds of compiling from which a result is kept."""


@functools.cache
def enable_compilation_cache() -> Path | None:
    """Turns JAX's compilation cache on, in a directory of this user alone.

    The directory is `jdl/compiled` in `$XDG_CACHE_HOME` or `~/.cache`, mode 0700: who could write
    there could run code. It holds nothing that is needed; deleting it only costs time. What the
    user has set for JAX itself holds: `JAX_COMPILATION_CACHE_DIR` for another directory,
    `JAX_ENABLE_COMPILATION_CACHE=false` for none.

    Returns:
      The directory, or None where the user has chosen otherwise or it is not safe to use.
    """
    config = jax.config
    own = config.values["jax_compilation_cache_dir"]
    if own or not config.values["jax_enable_compilation_cache"]:
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = caches / "jdl" / "compiled"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        _log.info("compiled programs are not kept: %s", error)
        return None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        _log.warning("compiled programs are not kept: others have access to %s", directory)
        return None
    config.update("jax_compilation_cache_dir", str(directory))
    config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return directory
