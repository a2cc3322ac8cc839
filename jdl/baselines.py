"""What any model has to beat: forecasts without learning, or by least squares."""

import numpy as np

from jdl.data import Series


def persistence(series: Series, split: str = "test") -> float:
    """RMSE of forecasting the last known value again, in the unit of the series."""
    values, ends = _values(series, split)
    return _rmse(values[ends - series.horizon], values[ends])


def autoregression(series: Series, order: int, split: str = "test") -> float:
    """RMSE of a linear function of the last `order` values, fitted by least squares on `train`.

    AR(p) of Box and Jenkins (1970), with a constant.
    """
    values, train = _values(series, "train", order)
    _, ends = _values(series, split)

    def rows(ends: np.ndarray) -> np.ndarray:
        lags = ends[:, None] - series.horizon - np.arange(order)
        return np.column_stack([np.ones(len(ends)), values[lags].reshape(len(ends), -1)])

    weights = np.linalg.lstsq(rows(train), values[train], rcond=None)[0]
    return _rmse(rows(ends) @ weights, values[ends])


def _values(series: Series, split: str, order: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All values, and the places of those that a split forecasts from at least `order` others."""
    values = series.read()[1]
    counts = {name: len(source) for name, source in series.splits().items()}
    first = len(values) - sum(counts.values())
    for name, count in counts.items():
        if name == split:
            places = np.arange(first, first + count)
            return values, places[places >= order + series.horizon - 1]
        first += count
    raise KeyError(split)


def _rmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(found - expected))))
