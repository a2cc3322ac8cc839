"""What a run will need, predicted from shapes: nothing is compiled."""

from jdl.analysis.plan.predict import FILLED, Choice, Plan, plan
from jdl.analysis.plan.text import lines, parse_bytes
from jdl.analysis.plan.trial import Bytes, Trial

__all__ = ["FILLED", "Bytes", "Choice", "Plan", "Trial", "lines", "parse_bytes", "plan"]
