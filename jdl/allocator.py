"""Memory that is kept between steps on CPUs."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of `mallopt(3)`."""


@functools.cache
def keep_memory() -> bool:
    """Tells glibc to keep freed memory for the next step, in this process from now on.

    XLA asks for each step's arrays anew. By default glibc gives every large one back to the
    system, whose fresh pages then cost more than the arithmetic of most layers. The process keeps
    what it needed at most until it ends. It helps most before JAX first uses a device, since
    threads that have begun keep arenas of their own; `jdl.train` begins with it.

    Returns:
      Whether it took effect: there is no such call outside glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    largest = 2**31 - 1
    return all(
        mallopt(parameter, value)
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, largest))
    )
