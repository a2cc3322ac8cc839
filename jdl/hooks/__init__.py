"""Callbacks between steps: progress, evaluation, checkpoints, early stopping, logging, profiles."""

from jdl.hooks.base import Hook, Listener
from jdl.hooks.scoring import Checkpoint, EarlyStopping, Evaluate
from jdl.hooks.watching import Profile, Progress, RetraceWarning, TensorBoard, WandB

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "Evaluate",
    "Hook",
    "Listener",
    "Profile",
    "Progress",
    "RetraceWarning",
    "TensorBoard",
    "WandB",
]
