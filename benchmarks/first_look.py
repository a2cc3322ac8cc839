"""Short benchmarks for an accelerator, most important first: `python -m benchmarks.first_look`.

Each part writes its rows as soon as they are measured, so that a machine available for minutes
yields results. Rounds are short and only the first step's parity is checked: rows are marked
`quick`. `python -m benchmarks` is the full protocol.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from benchmarks.__main__ import ask_machine, check
from benchmarks.measure import Failed, Protocol, measure
from benchmarks.report import heading, table
from benchmarks.workloads import workloads
from jdl.errors import UserError
from jdl.files import RunDirectory, to_json, write_json

PARTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "gpt2": ("transformer", "bf16", ("jdl", "torch-compile")),
    "lstm": ("lstm", "fp32", ("jdl", "torch-eager")),
    "resnet50": ("resnet50", "bf16", ("jdl", "torch-channels_last", "torch-compile")),
    "vit_s16": ("vit_s16", "bf16", ("jdl", "torch-compile")),
    "mlp": ("mlp", "fp32", ("jdl", "torch-eager", "torch-compile")),
    "cnn": ("cnn", "bf16", ("jdl", "torch-channels_last", "torch-compile")),
    "lstm_lm": ("lstm_lm", "fp32", ("jdl", "torch-eager")),
    "bert_base": ("bert_base", "bf16", ("jdl", "torch-compile")),
    "seq2seq": ("seq2seq", "bf16", ("jdl", "torch-compile")),
}
"""Workload, dtype and implementations of each part that times steps."""

SHORT = Protocol(rounds=3, steps=3, seconds=0.7, curve=0, quick=True, profile=3, together=True)

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def run(
    parts: Annotated[Positional[tuple[str, ...]], arg(metavar="PART")] = (),
    /,
    peers: bool = True,
    out: Path = Path("first_look"),
    limit: float = 540.0,
) -> int:
    """Checks that runs are reproduced bit for bit, then times steps beside PyTorch.

    Args:
        parts: exact, gpt2, lstm, resnet50, vit_s16, mlp, cnn, lstm_lm, bert_base, seq2seq
            (default: all, in this order).
        peers: also time PyTorch.
        out: a directory for `exact.json`, `rows.jsonl` and `profiles.txt`.
        limit: seconds after which no further part is begun.
    """
    check(parts, ("exact", *PARTS), "part")
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    machine = ask_machine()
    print(heading(machine), flush=True)
    known = {workload.name: workload for workload in workloads(machine["platform"] != "cpu")}
    for part in parts or ("exact", *PARTS):
        seconds = time.perf_counter() - begun
        if seconds > limit:
            print(f"{part}: no time left")
            continue
        print(f"== {part} ({seconds:.0f} s)", flush=True)
        if part == "exact":
            write_json(out / "exact.json", exact())
            print((out / "exact.json").read_text(), flush=True)
            continue
        name, dtype, implementations = PARTS[part]
        chosen = implementations if peers else ("jdl",)
        rows = measure(known[name], chosen, machine, dtype, SHORT)
        write(rows, out)
        print(table(rows), flush=True)
        for row in rows:
            if "error" in row:
                print(f"{row['implementation']}: {row['error']}", flush=True)
    return 0


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Appends rows, and the profile of jdl's step as text."""
    with (out / "rows.jsonl").open("a") as file, (out / "profiles.txt").open("a") as text:
        for row in rows:
            profile = row.pop("profile", {})
            print(to_json(row), file=file)
            if profile and row["implementation"] == "jdl":
                print(f"\n{row['workload']} {row['size']} {row['dtype']}", file=text)
            for name, (milliseconds, count) in list(profile.items())[:40]:
                print(f"{milliseconds:10.3f} ms in {count:7.1f}  {name}", file=text)


def exact() -> dict[str, Any]:
    """SHA-256 of the parameters of a run, of a repetition, and of one killed and resumed."""
    command = [sys.executable, "-m", "jdl", "train", "digits_cnn", "--epochs", "3"]
    environment = {**os.environ, "XLA_FLAGS": DETERMINISTIC}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        begun = {
            name: subprocess.Popen(
                [*command, "--workdir", f"{folder}/{name}"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("once", "again", "killed")
        }
        checkpoints = RunDirectory(Path(folder) / "killed").checkpoints
        while begun["killed"].poll() is None and not list(checkpoints.glob("*/manifest.json")):
            time.sleep(0.02)
        begun["killed"].kill()
        for name, process in begun.items():
            complaint = process.communicate()[1]
            if name != "killed" and process.returncode:
                found[f"{name} error"] = complaint[-500:]
        ended = subprocess.run(
            [*command, "--workdir", f"{folder}/killed"],
            env=environment,
            capture_output=True,
            text=True,
        )
        found["resumed"] = ended.stdout.splitlines()[:1] or ended.stderr[-500:]
        for name in begun:
            result = RunDirectory(Path(folder) / name).read_result()
            if result is not None:
                found[name] = result["params_sha256"]
                found["device"], found["metrics"] = result["device"], result["metrics"]
    return found


def main() -> int:
    """Reads the command line; a UserError is one sentence and exit code 2."""
    try:
        return tyro.cli(run, prog="python -m benchmarks.first_look")
    except (UserError, Failed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
