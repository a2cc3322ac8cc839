"""Which elements of an input belong together: features, and the sites of a map."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jdl.data import Table
from jdl.data.base import Data
from jdl.data.features import Feature
from jdl.explain.subject import Inputs

CELLS = 8
"""Cells of the grid on an image along its longer side."""


def grid_features(
    x: Inputs, embedded: Any, columns: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the feature of each element, of arrays that broadcast to an example.

    Args:
      x: the inputs, (rows, ...).
      embedded: names of those that are embeddings (rows, time, embed).
      columns: by input the feature of each column, of those of a table.

    Returns:
      Of an image the cells of a grid, of a text its tokens, of a table its columns, of other inputs
      each element; numbered over all inputs.
    """
    found, first = {}, 0
    for name, each in x.items():
        ids = columns.get(name, sites(each, name in embedded))
        if each.ndim == 4 and name not in embedded:
            side = max(1, math.ceil(max(each.shape[1:3]) / CELLS))
            rows, across = (np.arange(size) // side for size in each.shape[1:3])
            ids = (rows[:, None] * (across[-1] + 1) + across)[..., None]
        found[name] = np.asarray(ids + first)  # a row may be one number
        first += int(ids.max()) + 1
    return found


def site_features(x: Inputs, embedded: Any) -> dict[str, np.ndarray]:
    """Returns the finest features: pixels, tokens, elements; numbered over all inputs."""
    found, first = {}, 0
    for name, each in x.items():
        found[name] = np.asarray(sites(each, name in embedded) + first)
        first += int(found[name].max()) + 1 - first
    return found


def sites(x: Any, is_embedded: bool) -> np.ndarray:
    """Returns the numbers of the sites of one input: the last axis of pixels and tokens is one."""
    shape = x.shape[1:]
    joint = len(shape) == 3 or is_embedded
    kept = (*shape[:-1], 1) if joint else shape
    return np.arange(max(1, math.prod(kept))).reshape(kept)


def by_site(x: Inputs, attributions: Inputs, embedded: Any) -> np.ndarray:
    """Returns the sum of attributions at each site, (rows, sites)."""
    found = []
    for name, each in x.items():
        values = np.asarray(attributions[name], np.float64)
        shape = (len(values), *sites(each, name in embedded).shape)
        if values.shape != shape:
            joint = len(shape) == values.ndim and shape[-1] == 1 and values.shape[-1] > 1
            values = values.sum(-1, keepdims=True) if joint else values
            values = np.broadcast_to(values, shape)
        found.append(values.reshape(len(values), -1))
    return np.concatenate(found, 1)


def table_of(data: Data | None) -> Table | None:
    """Returns the table whose rows a data set reads, also below others; None if it reads none."""
    while data is not None and not isinstance(data, Table):
        data = data.wrapped
    return data


def table_columns(data: Data) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the column of each input of a table, and their names; nothing of other data."""
    table = table_of(data)
    if table is None:
        return {}, []
    features = [Feature.from_json(fields) for fields in table.fitted()["features"]]
    sizes = [len(feature.names) for feature in features]
    names = [feature.name for feature in features]
    return {table.array_names[0]: np.repeat(np.arange(len(sizes)), sizes)}, names
