"""Private directories in which results that can be made again are kept."""

import functools
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


def private_cache(name: str, lost: str) -> Path | None:
    """Creates `jdl/NAME` in `$XDG_CACHE_HOME` or `~/.cache`, mode 0700; it can always be deleted.

    Args:
      name: of the directory.
      lost: what is not kept without it, for a message.

    Returns:
      The directory, or None if it cannot be made, or others have access to it.
    """
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return _private(caches / "jdl" / name, lost)


@functools.cache
def _private(directory: Path, lost: str) -> Path | None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        _log.info("%s are not kept: %s", lost, error)
        return None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        _log.warning("%s are not kept: others have access to %s", lost, directory)
        return None
    return directory
