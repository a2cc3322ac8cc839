"""jdl: deep-learning research on JAX.

One experiment file defines what to train; `train` runs it through a pure, compiled update on the
devices that are there, and leaves a directory from which the result can be reproduced.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jdl._version import __version__

if TYPE_CHECKING:
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override
    from jdl.errors import UserError
    from jdl.experiment import Experiment, Runtime
    from jdl.sweeps.search.tuning import tune
    from jdl.trainer.api import train
    from jdl.trainer.fit import fit
    from jdl.trainer.opening import open
    from jdl.trainer.run import Run

_HOMES = {
    "Experiment": "jdl.experiment",
    "Run": "jdl.trainer.run",
    "Runtime": "jdl.experiment",
    "UserError": "jdl.errors",
    "fit": "jdl.trainer.fit",
    "load": "jdl.config.experiment_file",
    "open": "jdl.trainer.opening",
    "override": "jdl.config.overrides",
    "train": "jdl.trainer.api",
    "tune": "jdl.sweeps.search.tuning",
}

__all__ = [
    "Experiment",
    "Run",
    "Runtime",
    "UserError",
    "__version__",
    "fit",
    "load",
    "open",
    "override",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Loads a public name or a module when it is first used, so that `import jdl` takes no time."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"jdl.{name}"):
        return importlib.import_module(f"jdl.{name}")
    raise AttributeError(f"module 'jdl' has no attribute {name!r}")
