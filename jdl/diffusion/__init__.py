"""Diffusion and flow matching: paths from data to noise, and samplers back, as pure functions."""

from jdl.diffusion.editing import repaint
from jdl.diffusion.paths import CosinePath, LinearPath, NoisePath, Target, VariancePreserving
from jdl.diffusion.samplers import DDIM, Denoise, DPMSolver, Euler, Heun, Sampler

__all__ = [
    "DDIM",
    "CosinePath",
    "DPMSolver",
    "Denoise",
    "Euler",
    "Heun",
    "LinearPath",
    "NoisePath",
    "Sampler",
    "Target",
    "VariancePreserving",
    "repaint",
]
