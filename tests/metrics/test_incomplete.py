"""Metrics that define too little are refused in a sentence."""

from dataclasses import dataclass

import jax.numpy as jnp
import pytest

from jdl.errors import UserError
from jdl.metrics import AUROC, Metric


@dataclass(frozen=True, kw_only=True)
class Empty(Metric):
    pass


def test_a_metric_without_its_functions():
    ones = jnp.ones(2)
    with pytest.raises(UserError, match="Empty defines no statistics: return"):
        Empty().statistics(ones, ones, ones > 0)
    with pytest.raises(UserError, match="Empty defines no compute: return"):
        Empty().compute({"sum": ones})


def test_rows_that_are_collected_are_predictions_and_targets_by_default():
    rows = AUROC().statistics(jnp.array([0.1, 0.9]), jnp.array([0, 1]), jnp.ones(2, bool))
    assert rows.keys() == {"prediction", "targets"}
