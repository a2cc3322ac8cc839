"""Initial weights from other runs, and models in the format of Hugging Face transformers."""

from jdl.pretrained.huggingface import load, save
from jdl.pretrained.init_from import InitFrom, replace_arrays

__all__ = ["InitFrom", "load", "replace_arrays", "save"]
