"""Explains predictions: attributions of a named scalar, each with a card of what was checked."""

from jdl.explain.baselines import Baseline
from jdl.explain.cards import Card
from jdl.explain.deeplift import DeepLIFT
from jdl.explain.explanations import Explanations, explain
from jdl.explain.gradients import (
    Gradient,
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
)
from jdl.explain.layers import AttentionRollout, GradCAM
from jdl.explain.method import Method
from jdl.explain.perturbations import LIME, KernelSHAP, Occlusion, ShapleySampling
from jdl.explain.subject import Subject
from jdl.explain.targets import (
    Box,
    Class,
    Item,
    Loss,
    Output,
    Pixels,
    Recognized,
    Target,
    Token,
    Word,
)

__all__ = [
    "LIME",
    "AttentionRollout",
    "Baseline",
    "Box",
    "Card",
    "Class",
    "DeepLIFT",
    "Explanations",
    "GradCAM",
    "Gradient",
    "InputXGradient",
    "IntegratedGradients",
    "Item",
    "KernelSHAP",
    "Loss",
    "Method",
    "Occlusion",
    "Output",
    "Pixels",
    "Recognized",
    "ShapleySampling",
    "SmoothGrad",
    "Subject",
    "Target",
    "Token",
    "Word",
    "explain",
]
