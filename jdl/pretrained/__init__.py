"""Initial weights from other runs, and models in the format of Hugging Face transformers."""

from jdl.pretrained.huggingface import load, save
from jdl.pretrained.run import Weights, replace_weights

__all__ = ["Weights", "load", "replace_weights", "save"]
