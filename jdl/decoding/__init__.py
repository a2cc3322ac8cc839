"""Autoregressive decoding: sampling, greedy search and beam search, as pure functions."""

from jdl.decoding.autoregressive import generate, stream
from jdl.decoding.beam import beam_search, length_penalty
from jdl.decoding.greedy import greedy
from jdl.decoding.sampling import Sampling, draw, filtered
from jdl.decoding.translation import translate

__all__ = [
    "Sampling",
    "beam_search",
    "draw",
    "filtered",
    "generate",
    "greedy",
    "length_penalty",
    "stream",
    "translate",
]
