"""What a run will need, predicted from shapes: nothing is compiled."""

from jdl.plan.predict import FILLED, Choice, Plan, plan
from jdl.plan.text import lines, parse_bytes
from jdl.plan.trial import Bytes, Trial

__all__ = ["FILLED", "Bytes", "Choice", "Plan", "Trial", "lines", "parse_bytes", "plan"]
