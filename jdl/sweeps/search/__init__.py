"""Hyperparameter search with Optuna (Akiba et al., 2019).

    space = {
        "model.widths.0": Int(32, 512, step=32),
        "optimizer.learning_rate": LogUniform(1e-4, 1e-1),
    }

`jdl.tune` and the command `jdl tune` search such a space.
"""

from jdl.sweeps.search.dimensions import Choice, Int, LogUniform, Uniform, When

__all__ = ["Choice", "Int", "LogUniform", "Uniform", "When"]
