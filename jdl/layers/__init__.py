"""Flax modules that models are made of."""

from jdl.layers.norm import BatchNorm

__all__ = ["BatchNorm"]
