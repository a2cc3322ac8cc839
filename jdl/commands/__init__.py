"""The commands of `jdl`, as functions whose arguments tyro reads from the command line."""

from collections.abc import Callable

from jdl.commands.listing import list_experiments, prepare
from jdl.commands.planning import find_batch, find_lr, plan
from jdl.commands.reporting import compare, report
from jdl.commands.training import reproduce, train
from jdl.commands.using import evaluate, export, predict
from jdl.commands.writing import generate, translate

COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
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
