"""Callbacks between steps: progress, evaluation, checkpoints, early stopping, logging, profiles."""

from jdl.hooks.base import Callback, Hook
from jdl.hooks.sampling import Sample
from jdl.hooks.scoring import Checkpoint, EarlyStopping, Evaluate
from jdl.hooks.watching import Profile, Progress, RetraceWarning, TensorBoard, WandB

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Evaluate",
    "Hook",
    "Profile",
    "Progress",
    "RetraceWarning",
    "Sample",
    "TensorBoard",
    "WandB",
]
