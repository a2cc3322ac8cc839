"""XLA flags for tests, which compile many small programs."""

import importlib.metadata

_BEFORE_0_11 = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)

CHEAP = "--xla_cpu_parallel_codegen_split_count=1" + (
    # Later versions end a process that is given this flag.
    " --xla_cpu_use_fusion_emitters=false" if _BEFORE_0_11 else ""
)
"""Compiles three times as fast on CPUs."""


def devices(count: int) -> str:
    """So many virtual CPU devices, cheaply compiled for."""
    return f"--xla_force_host_platform_device_count={count} {CHEAP}"
