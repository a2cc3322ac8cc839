"""Initial weights from other runs, and models in the formats of transformers and timm."""

from jdl.pretrained.huggingface import load, save
from jdl.pretrained.init_from import InitFrom, initial_arrays, replace_arrays
from jdl.pretrained.timm import load_timm, save_timm

__all__ = ["InitFrom", "initial_arrays", "load", "load_timm", "replace_arrays", "save", "save_timm"]
