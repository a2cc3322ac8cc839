"""Training throughput of jdl beside its peers: `python -m benchmarks [WORKLOAD ...]`."""

import importlib.util
import io
import json as json_lib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from benchmarks.measure import QUICK, Failed, Protocol, Worker, measure
from benchmarks.report import heading, table
from benchmarks.workloads import Workload, workloads
from jdl.errors import UserError, nearest

WORKLOADS = (
    "mlp",
    "cnn",
    "lstm",
    "transformer",
    "lstm_lm",
    "resnet50",
    "cifar10_resnet",
    "vit_s16",
    "unet",
    "detector",
    "gan",
    "bert_base",
    "bert_finetune",
    "seq2seq",
    "ctc",
)
IMAGES = ("cnn", "resnet50", "cifar10_resnet", "vit_s16", "unet", "detector", "gan")
TWO_PEERS = ("vit_s16", "unet", "detector", "gan", "bert_base", "bert_finetune", "seq2seq", "ctc")
DTYPES = ("fp32", "bf16")
PEERS = {
    "torch": ("torch-eager", "torch-channels_last", "torch-compile"),
    "flax": ("flax",),
    "keras": ("keras",),
}
"""Implementations of each peer; each has a row of its own."""


def run(
    chosen: Annotated[Positional[tuple[str, ...]], arg(metavar="WORKLOAD", name="workloads")] = (),
    /,
    peers: tuple[str, ...] = (),
    dtype: str = "fp32",
    json: Path | None = None,
    quick: bool = False,
) -> int:
    """Times training steps of jdl and its peers, parity first, block by block in turn.

    Args:
        chosen: mlp, cnn, lstm, transformer, lstm_lm, resnet50, cifar10_resnet, vit_s16, unet,
            detector, gan, bert_base, bert_finetune, seq2seq, ctc
            (default: all).
        peers: torch, flax, keras; one that is not installed is named and skipped.
        dtype: fp32 or bf16, of the computation in all implementations.
        json: a file for the rows, one JSON object a line.
        quick: fewer and shorter rounds, first-step parity only, no torch.compile.
    """
    for names, known, what in (
        (chosen, WORKLOADS, "workload"),
        (peers, PEERS, "peer"),
        ((dtype,), DTYPES, "dtype"),
    ):
        check(names, tuple(known), what)
    file = open_rows(json)
    present = installed(peers)
    machine = ask_machine()
    print(heading(machine))
    rows: list[dict[str, Any]] = []
    protocol = QUICK if quick else Protocol()
    every = workloads(machine["platform"] != "cpu")
    for workload in (w for w in every if w.name in (chosen or WORKLOADS)):
        names = implementations(workload, present, quick)
        found = measure(workload, names, machine, dtype, protocol)
        rows += found
        for row in found:
            print(json_lib.dumps(row), file=file, flush=True)
        print(table(found), flush=True)
    return 1 if any("error" in row for row in rows if row["implementation"] == "jdl") else 0


def implementations(workload: Workload, peers: Sequence[str], quick: bool) -> list[str]:
    """The implementations of a workload, jdl's first."""
    names = ["jdl", *(name for peer in peers for name in PEERS[peer])]
    senseless = set() if workload.name in IMAGES else {"torch-channels_last"}
    if workload.random or workload.name in TWO_PEERS:
        senseless.add("keras")  # it augments images while it loads them; others have no twin in it
    if workload.name in ("lstm", "lstm_lm"):
        senseless.add("torch-compile")  # it does not compile `nn.LSTM`
    slow = {"torch-compile"} if quick else set()
    return [name for name in names if name not in senseless | slow]


def check(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Validates names.

    Raises:
      UserError: a name is unknown; suggests the nearest.
    """
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise UserError(f"there is no {what} {name!r} (there are {', '.join(known)}){hint}")


def installed(peers: Sequence[str]) -> list[str]:
    """The peers that can be imported; prints the others."""
    found = []
    for peer in dict.fromkeys(peers):
        if importlib.util.find_spec(peer):
            found.append(peer)
        else:
            print(f"{peer} is not installed and is left out (extra `peers`)")
    return found


def open_rows(path: Path | None) -> Any:
    """Opens the file for rows; without a path, a null file.

    Raises:
      UserError: it cannot be written.
    """
    if path is None:
        return io.StringIO()
    try:
        return path.open("w")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def ask_machine() -> dict[str, Any]:
    """Describes the machine in a subprocess: in this one, JAX would occupy the device."""
    worker = Worker("jdl", 1)
    try:
        return worker.ask("describe")
    finally:
        worker.close()


def main() -> int:
    """Reads the command line; a UserError is one sentence and exit code 2."""
    try:
        return tyro.cli(run, prog="python -m benchmarks")
    except (UserError, Failed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
