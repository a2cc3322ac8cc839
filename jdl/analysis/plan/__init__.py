"""Estimates memory and time of a run from traced shapes, without compiling."""

from jdl.analysis.plan.estimate import FILLED, Choice, Plan, plan
from jdl.analysis.plan.text import lines, parse_bytes
from jdl.analysis.plan.trial import Bytes, Trial

__all__ = ["FILLED", "Bytes", "Choice", "Plan", "Trial", "lines", "parse_bytes", "plan"]
