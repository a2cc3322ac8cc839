"""The commands of `jdl` by name; the arguments of the functions are those of the command line."""

from collections.abc import Callable

from jdl.cli.audit import audit
from jdl.cli.calibrate import calibrate
from jdl.cli.card import card
from jdl.cli.chat import chat
from jdl.cli.compare import compare
from jdl.cli.compress import compress
from jdl.cli.curve import curve
from jdl.cli.embed import embed
from jdl.cli.evaluate import evaluate
from jdl.cli.explain import explain
from jdl.cli.export import export
from jdl.cli.find import find_batch, find_lr
from jdl.cli.generate import generate
from jdl.cli.list import list_experiments
from jdl.cli.plan import plan
from jdl.cli.predict import predict
from jdl.cli.prepare import prepare
from jdl.cli.report import report
from jdl.cli.reproduce import reproduce
from jdl.cli.robustness import robustness
from jdl.cli.sample import sample
from jdl.cli.speak import speak
from jdl.cli.train import train
from jdl.cli.transcribe import transcribe
from jdl.cli.translate import translate
from jdl.cli.tune import tune
from jdl.cli.verify import verify

COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "predict": predict,
    "embed": embed,
    "sample": sample,
    "verify": verify,
    "speak": speak,
    "generate": generate,
    "chat": chat,
    "translate": translate,
    "explain": explain,
    "transcribe": transcribe,
    "export": export,
    "compress": compress,
    "reproduce": reproduce,
    "audit": audit,
    "calibrate": calibrate,
    "robustness": robustness,
    "card": card,
    "report": report,
    "compare": compare,
    "curve": curve,
    "find-lr": find_lr,
    "find-batch": find_batch,
    "plan": plan,
    "list": list_experiments,
    "prepare": prepare,
}
