"""Optuna's samplers and pruners by name; a draw depends on the seed and on earlier trials only."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jdl.errors import UserError, install_command

SamplerName = Literal["grid", "random", "tpe", "gp", "cmaes"]
PrunerName = Literal["none", "median", "hyperband"]

EXTRAS = {"gp": "torch", "cmaes": "cmaes"}
"""Packages that some of Optuna's samplers need."""


class PerTrialSampler(BaseSampler):
    """A sampler that is created anew for each trial, seeded by its number.

    A resumed study so draws what an uninterrupted one would, and workers that start together draw
    different points.

    Args:
      build: creates the sampler of a trial, given its number.
    """

    def __init__(self, build: Callable[[int], BaseSampler]) -> None:
        self._build = build
        self._sampler = build(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """See `BaseSampler`."""
        self._sampler = self._build(trial.number)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See `BaseSampler`."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See `BaseSampler`."""
        self._sampler.after_trial(study, trial, state, values)


def make_sampler(
    name: SamplerName, seed: int, grid: Sequence[Mapping[str, Any]] = ()
) -> BaseSampler:
    """Creates the sampler of a study.

    Args:
      name: of the sampler.
      seed: of all draws.
      grid: for `grid` the values of each point, as `grid_points` lists them; trial n takes the
        n-th, so that no point is taken twice.

    Raises:
      UserError: a package is missing.
    """
    needed = EXTRAS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        raise UserError(
            f"the sampler {name} needs the package {needed}: {install_command(f'search-{name}')}"
        )

    def build(number: int) -> BaseSampler:
        state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if name == "grid":
            values = dict(grid[number]) if number < len(grid) else {}
            return optuna.samplers.PartialFixedSampler(values, optuna.samplers.RandomSampler(state))
        if name == "random":
            return optuna.samplers.RandomSampler(state)
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=state, constant_liar=True)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=state, deterministic_objective=False)
        return optuna.samplers.CmaEsSampler(seed=state)

    with quiet_optuna():
        return PerTrialSampler(build)


def make_pruner(name: PrunerName) -> optuna.pruners.BasePruner:
    """Creates the pruner of a study."""
    if name == "median":
        return optuna.pruners.MedianPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppresses Optuna's warnings, such as that a sampler is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
