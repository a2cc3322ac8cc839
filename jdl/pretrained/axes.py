"""Rearranges arrays by named axes, as einops does: `w (q h d) -> w (h q d)`.

Letters in parentheses share an axis; `1` is an axis of size 1. Swapping the sides inverts it.
"""

import math
import re
from collections.abc import Mapping

import numpy as np


def shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array with these axes, given the size of each letter."""
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in axes(side))


def rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Rearranges an array from the axes `source` to the axes `target`, of the same letters."""
    letters, wanted = ([x for axis in axes(side) for x in axis] for side in (source, target))
    split = array.reshape([sizes[letter] for letter in letters])
    turned = split.transpose([letters.index(letter) for letter in wanted])
    return np.ascontiguousarray(turned.reshape(shape(target, sizes)))


def axes(side: str) -> list[list[str]]:
    """The letters of each axis; `1` has none."""
    found = re.findall(r"\((.*?)\)|(\S+)", side)
    return [[x for x in (joined or alone).split() if x != "1"] for joined, alone in found]
