"""Learning problems: what is minimised, measured and predicted."""

from jdl.tasks.base import Task, forward
from jdl.tasks.classification import Classification
from jdl.tasks.regression import Regression

__all__ = ["Classification", "Regression", "Task", "forward"]
