"""Decoding: sampling, greedy and beam search, token by token or of CTC, as pure functions."""

from jdl.decoding.autoregressive import generate, stream
from jdl.decoding.beam import beam_search, length_penalty
from jdl.decoding.ctc import (
    Decoded,
    ctc_align,
    ctc_beam_search,
    ctc_greedy,
    ngram_log_probs,
)
from jdl.decoding.greedy import greedy
from jdl.decoding.sampling import Sampling, filter_logits, sample
from jdl.decoding.translation import translate

__all__ = [
    "Decoded",
    "Sampling",
    "beam_search",
    "ctc_align",
    "ctc_beam_search",
    "ctc_greedy",
    "filter_logits",
    "generate",
    "greedy",
    "length_penalty",
    "ngram_log_probs",
    "sample",
    "stream",
    "translate",
]
