"""Memory that is kept between steps on CPUs."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of `mallopt(3)`."""

TOP_PAD_BYTES = 1 << 27
"""Bytes that an arena keeps at its end; more than a heap of any thread's arena."""


@functools.cache
def configure_allocator(arenas: int = 1) -> bool:
    """Tells glibc to keep freed memory for the next step, in this process from now on.

    XLA asks for each step's arrays anew. By default glibc gives every large one back to the
    system, whose fresh pages then cost more than the arithmetic of most layers. The process keeps
    what it needed at most until it ends. It helps most before JAX first uses a device, since
    threads that have begun keep arenas of their own; `jdl.train` begins with it.

    Args:
      arenas: from which all threads allocate; 0 for as many as glibc likes. With one, large arrays
        are found again best; with several, threads that allocate small ones do not wait for each
        other.

    Returns:
      Whether it took effect: there is no such call outside glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    chosen = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: TOP_PAD_BYTES}
    if arenas:
        chosen[M_ARENA_MAX] = arenas
    return all(mallopt(parameter, value) for parameter, value in chosen.items())
