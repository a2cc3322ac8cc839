"""Configures glibc's allocator to keep freed memory between steps on CPUs."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of `mallopt(3)`."""

TOP_PAD_BYTES = 1 << 27
"""Bytes that an arena keeps free at its top; more than a heap of any thread's arena."""


@functools.cache
def configure_allocator(arenas: int = 1) -> bool:
    """Makes glibc keep freed memory for the next step, in this process from now on.

    XLA allocates the arrays of each step anew. By default glibc returns every large one to the
    system, and page faults on fresh pages then cost more than the arithmetic of most layers. The
    process keeps its peak memory until it ends. Call it before JAX first uses a device, since
    running threads keep arenas of their own; `jdl.train` does.

    Args:
      arenas: number of arenas that all threads share; 0 for glibc's default. One reuses large
        arrays best; with several, threads that allocate small arrays do not contend for a lock.

    Returns:
      Whether it took effect; False outside glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    chosen = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: TOP_PAD_BYTES}
    if arenas:
        chosen[M_ARENA_MAX] = arenas
    return all(mallopt(parameter, value) for parameter, value in chosen.items())
