"""Models: Flax modules with plain fields."""

from jdl.models.cnn import CNN
from jdl.models.gpt import GPT, GPT2
from jdl.models.mlp import MLP
from jdl.models.rnn import RNN

__all__ = ["CNN", "GPT", "GPT2", "MLP", "RNN"]
