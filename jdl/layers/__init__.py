"""Flax modules that models are made of."""

from jdl.layers.norm import BatchNorm
from jdl.layers.recurrent import GRU, LSTM, Bidirectional, SimpleRNN
from jdl.layers.residual import NormedConv, Residual
from jdl.layers.transformer import Block, SelfAttention, layer_norm

__all__ = [
    "GRU",
    "LSTM",
    "BatchNorm",
    "Bidirectional",
    "Block",
    "NormedConv",
    "Residual",
    "SelfAttention",
    "SimpleRNN",
    "layer_norm",
]
