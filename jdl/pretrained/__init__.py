"""Initial weights from other runs, and models in the format of Hugging Face transformers."""

from jdl.pretrained.huggingface import load, save
from jdl.pretrained.init_from import InitFrom, initial_arrays, replace_arrays

__all__ = ["InitFrom", "initial_arrays", "load", "replace_arrays", "save"]
