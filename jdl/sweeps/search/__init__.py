"""Searches for the best of an experiment's variants: what may vary stands beside the experiment.

    space = {
        "model.widths.0": Int(32, 512, step=32),
        "optimizer.learning_rate": LogUniform(1e-4, 1e-1),
    }

`jdl.tune` and the command `jdl tune` search it, by Optuna (Akiba et al., 2019).
"""

from jdl.sweeps.search.dimensions import Choice, Int, LogUniform, Uniform, When

__all__ = ["Choice", "Int", "LogUniform", "Uniform", "When"]
