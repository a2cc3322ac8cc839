"""jdl: deep-learning research on JAX.

One experiment file says what to train; `train` runs it through a pure, compiled update on the
devices that are there, and leaves a directory from which the result can be reproduced.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jdl._version import __version__

if TYPE_CHECKING:
    from jdl.errors import UserError
    from jdl.experiment import Experiment, load
    from jdl.overrides import override
    from jdl.run import Run
    from jdl.training import fit, open_run, train

_HOMES = {
    "Experiment": "jdl.experiment",
    "Run": "jdl.run",
    "UserError": "jdl.errors",
    "fit": "jdl.training",
    "load": "jdl.experiment",
    "open_run": "jdl.training",
    "override": "jdl.overrides",
    "train": "jdl.training",
}

__all__ = [
    "Experiment",
    "Run",
    "UserError",
    "__version__",
    "fit",
    "load",
    "open_run",
    "override",
    "train",
]


def __getattr__(name: str) -> Any:
    """Loads a public name or a module when it is first used, so that `import jdl` takes no time."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"jdl.{name}"):
        return importlib.import_module(f"jdl.{name}")
    raise AttributeError(f"module 'jdl' has no attribute {name!r}")
