"""Autoregressive decoding: sampling, greedy search and beam search, as pure functions."""

from jdl.decoding.autoregressive import generate, stream
from jdl.decoding.beam import beam_search, length_penalty
from jdl.decoding.greedy import greedy
from jdl.decoding.sampling import Sampling, filter_logits, sample
from jdl.decoding.translation import translate

__all__ = [
    "Sampling",
    "beam_search",
    "filter_logits",
    "generate",
    "greedy",
    "length_penalty",
    "sample",
    "stream",
    "translate",
]
