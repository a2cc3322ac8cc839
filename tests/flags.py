"""Flags of XLA for tests, whose programs are small and many."""

CHEAP = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Compiles three times as fast on CPUs."""


def devices(count: int) -> str:
    """So many virtual CPU devices, cheaply compiled for."""
    return f"--xla_force_host_platform_device_count={count} {CHEAP}"
