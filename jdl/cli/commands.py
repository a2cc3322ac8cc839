"""The commands of `jdl`, as functions whose arguments tyro reads from the command line."""

from collections.abc import Callable

from jdl.cli.list import list_experiments, prepare
from jdl.cli.plan import find_batch, find_lr, plan
from jdl.cli.report import compare, report
from jdl.cli.tune import tune
from jdl.cli.train import reproduce, train
from jdl.cli.evaluate import evaluate, export, predict
from jdl.cli.generate import generate, translate

COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "predict": predict,
    "generate": generate,
    "translate": translate,
    "export": export,
    "reproduce": reproduce,
    "report": report,
    "compare": compare,
    "find-lr": find_lr,
    "find-batch": find_batch,
    "plan": plan,
    "list": list_experiments,
    "prepare": prepare,
}
