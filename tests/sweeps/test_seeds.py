"""The summary of several seeds."""

import math
import statistics

import numpy as np

from jdl.sweeps.seeds import spread


def test_the_spread_is_the_sample_one():
    values = [0.25, 0.5, 1.0]
    np.testing.assert_allclose(spread(values)["std"], statistics.stdev(values), rtol=1e-12)
    np.testing.assert_allclose(spread(values)["mean"], statistics.fmean(values), rtol=1e-12)


def test_a_score_that_a_split_does_not_define_stays_undefined():
    """The average precision of normal rows alone, say."""
    for values in ([math.nan, math.nan], [1.0, math.nan], [math.nan, 1.0]):
        assert all(math.isnan(spread(values)[name]) for name in ("mean", "std", "min", "max"))
