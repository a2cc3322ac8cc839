"""Report sections that need no predictions: parameters, costs, reproduction."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jdl.config.experiment_file import available
from jdl.config.overrides import as_flags
from jdl.files import RunDirectory, read_json
from jdl.paths import path_name
from jdl.report.page import Html, html, section, table
from jdl.trainer.record import RecordedRun
from jdl.trainer.run import Run

ABSENT = "not recorded"
"""Said of what a run of an older version does not hold."""

FOLDED = 30
"""A longer list of parameters is shown when it is asked for."""


def parameters(run: Run) -> Html:
    """Path, shape, dtype and count of every trainable array."""
    found = jax.tree_util.tree_leaves_with_path(run.gather_state().params)
    lines = [(path_name(path), str(leaf.shape), str(leaf.dtype), leaf.size) for path, leaf in found]
    total = sum(leaf.size for _, leaf in found)
    all_of_them = table(("path", "shape", "dtype", "count"), [*lines, ("total", "", "", total)])
    if len(lines) > FOLDED:
        about = f"{total:,} numbers in {len(lines)} arrays"
        all_of_them = html("<details><summary>{}</summary>{}</details>", about, all_of_them)
    return section("Parameters", all_of_them)


def time_and_memory(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Html:
    """How a run spent its time and memory."""
    return section("Time and memory", table(("", ""), costs(result, rows)))


def costs(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Describes time, memory and lost steps, from `result.json` and `metrics.jsonl`."""
    if not result and rows:
        result = rows[-1]["timing"]  # a run that has not ended
    seconds = result.get("seconds")

    def spent(name: str) -> str:
        if name not in result:
            return ABSENT
        share = f", {100 * result[name] / seconds:.1f} % of the total" if seconds else ""
        return f"{result[name]:.1f} s{share}"

    traced = {name: count for name, count in result.get("traces", {}).items() if count > 1}
    recompiled = ", ".join(f"{name}, {count} times" for name, count in traced.items()) or "no"
    peak = f"{result['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in result else ABSENT
    speed = result.get("items_per_second")
    skipped = sum(row["split"] == "skipped" for row in rows)
    return [
        ("total seconds", ABSENT if seconds is None else f"{seconds:.1f} s"),
        ("compiling", spent("compile_seconds")),
        ("recompiled", recompiled if "traces" in result else ABSENT),
        ("waiting for input", spent("input_seconds")),
        ("peak memory", peak),
        ("training speed", ABSENT if speed is None else f"{speed:,.1f} items a second"),
        ("steps skipped as not finite", str(skipped)),
    ]


def reproduction(directory: Path, recorded: RecordedRun, result: Mapping[str, Any]) -> Html:
    """The commands that repeat a run, and where it ran."""
    commands = [f"jdl reproduce {shlex.quote(str(directory))}"]
    if recorded.file is not None:
        name = recorded.name if recorded.name in available() else str(recorded.file.path)
        flags = shlex.join(as_flags(recorded.overrides))
        commands.append(f"jdl train {shlex.quote(name)} {flags}".rstrip())
    environment = read_json(RunDirectory(directory).environment) or {}
    versions = result.get("versions") or environment.get("versions", {})
    devices = environment.get("devices", {})
    lines = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("device", result.get("device") or devices.get("kind", ABSENT)),
        ("machine", devices.get("machine", ABSENT)),
        ("git commit", environment.get("git_commit") or ABSENT),
    ]
    block = html("<pre>{}</pre>", "\n".join(commands))
    return section("Reproduce", block, table(("", ""), lines))
