"""The commands of `jdl`, as functions whose arguments tyro reads from the command line."""

from collections.abc import Callable

from jdl.cli.listing import list_experiments, prepare
from jdl.cli.planning import find_batch, find_lr, plan
from jdl.cli.reporting import compare, report
from jdl.cli.searching import tune
from jdl.cli.training import reproduce, train
from jdl.cli.using import evaluate, export, predict
from jdl.cli.writing import generate, translate

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
