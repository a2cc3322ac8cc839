"""Flax modules that models are made of."""

from jdl.layers.embed import Embed
from jdl.layers.norm import BatchNorm
from jdl.layers.recurrent import GRU, LSTM
from jdl.layers.transformer import Block, SelfAttention, layer_norm

__all__ = ["GRU", "LSTM", "BatchNorm", "Block", "Embed", "SelfAttention", "layer_norm"]
