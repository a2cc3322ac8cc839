"""Flax modules from which the models are built."""

from jdl.layers.attention import Attention
from jdl.layers.condition import ConditionEmbedding
from jdl.layers.dropout import Dropout
from jdl.layers.lora import LoRA, merge_lora
from jdl.layers.norm import BatchNorm
from jdl.layers.patches import cut_patches, join_patches
from jdl.layers.position import check_length, rotary, segment_positions, sinusoidal
from jdl.layers.recurrent import GRU, LSTM, Bidirectional, SimpleRNN
from jdl.layers.residual import NormedConv, Residual
from jdl.layers.transformer import (
    Block,
    FeedForward,
    check_sizes,
    exact_gelu,
    normalization,
    stack,
)
from jdl.layers.whitening import Whitening, partial_identity, whitening_kernel

__all__ = [
    "GRU",
    "LSTM",
    "Attention",
    "BatchNorm",
    "Bidirectional",
    "Block",
    "ConditionEmbedding",
    "Dropout",
    "FeedForward",
    "LoRA",
    "NormedConv",
    "Residual",
    "SimpleRNN",
    "Whitening",
    "check_length",
    "check_sizes",
    "cut_patches",
    "exact_gelu",
    "join_patches",
    "merge_lora",
    "normalization",
    "partial_identity",
    "rotary",
    "segment_positions",
    "sinusoidal",
    "stack",
    "whitening_kernel",
]
