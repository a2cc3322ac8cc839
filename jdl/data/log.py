"""Warnings of data sets, each logged once."""

import functools
import logging

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def warn_once(text: str) -> None:
    """Logs a text the first time: a data set is opened several times in a run."""
    _log.warning("%s", text)
