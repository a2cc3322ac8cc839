"""Models: Flax modules with plain fields."""

from jdl.models.cnn import CNN
from jdl.models.mlp import MLP

__all__ = ["CNN", "MLP"]
