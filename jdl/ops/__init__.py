"""Pure functions with custom gradients where XLA's are slow, equal to their plain definitions."""

from jdl.ops.attention import attention
from jdl.ops.convolution import conv_general_dilated
from jdl.ops.cross_entropy import linear_cross_entropy
from jdl.ops.dot import dot_general, product, products_saveable
from jdl.ops.pooling import max_pool
from jdl.ops.recurrence import gru, gru_step, lstm, lstm_step
from jdl.ops.resize import resize_bilinear

__all__ = [
    "attention",
    "conv_general_dilated",
    "dot_general",
    "gru",
    "gru_step",
    "linear_cross_entropy",
    "lstm",
    "lstm_step",
    "max_pool",
    "product",
    "products_saveable",
    "resize_bilinear",
]
