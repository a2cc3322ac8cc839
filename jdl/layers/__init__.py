"""Flax modules that models are made of."""

from jdl.layers.norm import BatchNorm
from jdl.layers.recurrent import GRU, LSTM
from jdl.layers.transformer import Block, SelfAttention, layer_norm

__all__ = ["GRU", "LSTM", "BatchNorm", "Block", "SelfAttention", "layer_norm"]
