"""Two virtual devices and checked types for every test; set before JAX starts its backend."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ.pop("TFDS_DATA_DIR", None)

from beartype import BeartypeConf
from beartype.claw import beartype_package

# Checks every annotated argument and result of the package while it is tested; not of the state,
# in whose place JAX puts shapes, shardings and None while it maps over trees, nor of operations
# with gradients of their own, which it would wrap.
beartype_package(
    "jdl",
    conf=BeartypeConf(is_pep484_tower=True, claw_skip_package_names=("jdl.state", "jdl.ops")),
)
