"""Model cards (Mitchell et al., 2019) in the fields of Hugging Face's, filled from the record."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jdl.config.experiment_file import documentation
from jdl.errors import UserError
from jdl.files import RunDirectory, read_json, write_atomically
from jdl.typing import Json

MARK = "<!-- Written by `jdl card`, which replaces this file. -->"
"""In every card, so that one that somebody has edited is not replaced."""

MISSING = "[More Information Needed]"
"""What Hugging Face's template says where only people can know."""

TASKS = {
    "classification": "tabular-classification",
    "binary_classification": "tabular-classification",
    "language_modeling": "text-generation",
    "masked_language_modeling": "fill-mask",
    "translation": "translation",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "regression": "tabular-regression",
    "forecast": "time-series-forecasting",
}
"""Tasks in the vocabulary of Hugging Face; inputs of images and tokens change the first two."""

HYPERPARAMETERS = ("optimizer", "batch_size", "epochs", "steps", "precision", "seed", "init_from")


def write_card(directory: Path, out: Path | None = None) -> Path:
    """Writes the model card of a run, a Markdown file with metadata as Hugging Face reads it.

    It executes nothing. Uses, risks and the like, which no record holds, are left to be written;
    an audit and a calibration of the run fill theirs.

    Args:
      directory: of the run.
      out: the file; None for `README.md` in the directory.

    Returns:
      The file.

    Raises:
      UserError: this is no run directory, the run has not finished, or the file was edited.
    """
    files = RunDirectory(directory)
    recorded, result = files.read_experiment(), files.read_result()
    if result is None:
        raise UserError(f"{directory} is not finished: a card needs its result, so train it first")
    target = out or directory / "README.md"
    if target.exists() and MARK not in target.read_text():
        raise UserError(
            f"{target} exists and was not written by `jdl card`: name another with --out"
        )
    record = {
        "fields": recorded.fields,
        "name": recorded.experiment,
        "result": result,
        "environment": read_json(files.environment) or {},
        "data": read_json(files.data) or {},
        "audit": read_json(files.audit),
        "calibration": read_json(files.calibration),
        "about": documentation(files.script) if files.script.exists() else "",
        "directory": directory,
    }
    write_atomically(target, "\n".join([*_metadata(record), "", *_body(record)]) + "\n")
    return target


def _metadata(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields the YAML block; strings are written as JSON, which YAML contains."""
    kind, source = _kind(record), _source(record)
    scores = record["result"]["metrics"]
    split = _held_out(scores)
    yield "---"
    yield "library_name: jdl"
    yield "tags: [jax, flax]"
    if kind:
        yield f"pipeline_tag: {kind}"
    yield f"datasets: [{json.dumps(source)}]"
    yield "model-index:"
    yield f"- name: {json.dumps(record['name'])}"
    yield "  results:"
    yield f"  - task: {{type: {kind or 'other'}}}"
    yield f"    dataset: {{name: {json.dumps(source)}, type: {json.dumps(source)}, split: {split}}}"
    yield "    metrics:"
    for name, value in scores[split].items():
        if isinstance(value, (int, float)) and value == value:
            yield f"    - {{type: {name}, value: {value:.6g}}}"
    yield "---"


def _body(record: Mapping[str, Any]) -> Iterator[str]:
    name, about = record["name"], record["about"].splitlines()
    fields, result = record["fields"], record["result"]
    yield f"# Model Card for {name}"
    yield ""
    yield MARK
    yield ""
    yield about[0] if about else f"A {fields['model']} trained by jdl."
    yield from _section("Model Details", 2)
    yield from _section("Model Description", 3)
    yield from _items(
        {
            "Developed by": MISSING,
            "Model type": f"{fields['model']}, {result.get('parameters', 0):,} parameters",
            "License": MISSING,
            "Finetuned from model": fields.get("init_from.run") or "none",
        }
    )
    yield from _section("Uses", 2)
    for title in ("Direct Use", "Out-of-Scope Use"):
        yield from _section(title, 3)
        yield MISSING
    yield from _section("Bias, Risks, and Limitations", 2)
    yield from _bias(record)
    yield from _section("How to Get Started with the Model", 2)
    yield from _code(
        "import jdl", f"run = jdl.open({str(record['directory'])!r})", "prediction = run.predict(x)"
    )
    yield from _training(record)
    yield from _evaluation(record)
    yield from _section("Environmental Impact", 2)
    hours = result.get("seconds", 0) / 3600
    yield from _items(
        {"Hardware Type": result.get("device", MISSING), "Hours used": f"{hours:.3g}"}
        | {"Carbon Emitted": MISSING}
    )
    yield from _section("Technical Specifications", 2)
    yield from _section("Model Architecture and Objective", 3)
    yield from _table(("field", "value"), _settings(fields, ("model", "task")))
    yield from _section("Compute Infrastructure", 3)
    devices = record["environment"].get("devices", {})
    versions = result.get("versions", {})
    yield from _items(
        {
            "Hardware": f"{result.get('device', MISSING)}, {devices.get('machine', MISSING)}",
            "Software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
    )
    yield from _section("Model Card Contact", 2)
    yield MISSING


def _bias(record: Mapping[str, Any]) -> Iterator[str]:
    audit = record["audit"]
    if audit is None:
        yield f"{MISSING} (`jdl audit RUN --group COLUMN` compares groups of examples)"
        return
    yield f"Differences between groups on {audit['examples']:,} examples of {audit['split']}:"
    yield ""
    lines = []
    for grouping in audit["groupings"]:
        for name, gap in grouping["gaps"].items():
            value = gap["difference"]
            lines.append(
                (
                    grouping["column"],
                    name,
                    _with_interval(value),
                    gap["lowest"],
                    gap["highest"],
                    _number(gap["p_value"]),
                )
            )
    header = ("groups", "largest difference of", "value", "lowest", "highest", "p")
    yield from _table(header, lines)
    for grouping in audit["groupings"]:
        yield ""
        worst = grouping["gaps"]["accuracy"]["lowest"]
        accuracy = _number(grouping["scores"]["accuracy"][worst]["value"])
        yield f"By {grouping['column']}, accuracy is lowest for {worst}: {accuracy}."
        if grouping["small"]:
            yield f"Too few examples to tell for {', '.join(grouping['small'])}."


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    fields, result = record["fields"], record["result"]
    yield from _section("Training Details", 2)
    yield from _section("Training Data", 3)
    counts = record["data"].get("examples", {})
    prints = record["environment"].get("data", {})
    lines = [
        (
            split,
            f"{count:,}",
            prints.get(split, {}).get("source", ""),
            prints.get(split, {}).get("sha256", "")[:16],
        )
        for split, count in counts.items()
    ]
    yield from _table(("split", "examples", "source", "SHA-256, first digits"), lines)
    arrays = record["data"].get("arrays", {})
    shapes = ", ".join(f"`{k}` {v['dtype']}{v['shape']}" for k, v in arrays.items())
    yield f"\nArrays of an example: {shapes}."
    yield from _section("Training Procedure", 3)
    yield from _section("Training Hyperparameters", 4)
    yield from _table(("field", "value"), _settings(fields, HYPERPARAMETERS))
    yield from _section("Speeds, Sizes, Times", 4)
    yield from _items(
        {
            "Seconds": f"{result.get('seconds', 0):.1f}",
            "Examples per second": f"{result.get('items_per_second', 0):,}",
            "Peak memory": f"{result.get('peak_bytes', 0) / 2**20:,.0f} MiB",
            "SHA-256 of the parameters": result.get("params_sha256", MISSING),
        }
    )
    yield ""
    yield "It is trained again, and compared, by"
    yield ""
    yield from _code(f"jdl reproduce {shlex.quote(str(record['directory']))}")


def _evaluation(record: Mapping[str, Any]) -> Iterator[str]:
    scores = record["result"]["metrics"]
    yield from _section("Evaluation", 2)
    yield from _section("Testing Data, Factors & Metrics", 3)
    yield f"Testing data: the {_held_out(scores)} split."
    audit = record["audit"]
    factors = ", ".join(each["column"] for each in audit["groupings"]) if audit else MISSING
    yield f"Factors: {factors}."
    yield from _section("Results", 3)
    names = list(dict.fromkeys(name for each in scores.values() for name in each))
    lines = [(s, *(_number(each.get(n)) for n in names)) for s, each in scores.items()]
    yield from _table(("split", *names), lines)
    known = record["calibration"]
    if known is None:
        return
    yield from _section("Calibration", 3)
    yield f"Fitted on {known['examples']:,} examples of the {known['split']} split."
    if "test" in known:
        yield ""
        lines = [(n, *map(_number, known["test"][n].values())) for n in ("before", "after")]
        yield from _table(("test", *known["test"]["before"]), lines)
        sets = known["test"]["sets"]
        worst = sets["worst_class"]
        yield ""
        yield (
            f"Conformal sets contain the true class in {sets['coverage']:.1%} of the examples, of "
            f"{worst} in {sets['coverage_by_class'][worst]:.1%}; they have "
            f"{sets['mean_size']:.2f} classes on average, and {sets['empty']:.1%} are empty."
        )


def _kind(record: Mapping[str, Any]) -> str:
    """Returns the task's name at Hugging Face, empty if it has none."""
    kind = TASKS.get(record["fields"]["task"], "")
    arrays = record["data"].get("arrays", {})
    if kind == "tabular-classification" and "tokens" in arrays:
        return "text-classification"
    if kind == "tabular-classification" and "image" in arrays:
        return "image-classification"
    return kind


def _source(record: Mapping[str, Any]) -> str:
    prints = record["environment"].get("data", {})
    return prints.get("train", {}).get("source") or "unknown"


def _held_out(scores: Mapping[str, Any]) -> str:
    return next(split for split in ("test", "validation", *scores) if split in scores)


def _settings(fields: Mapping[str, Json], roots: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the settings below some fields, without those that are empty."""
    chosen = {path: x for path, x in fields.items() if path.split(".")[0] in roots}
    return [(path, str(value)) for path, value in chosen.items() if value not in (None, [], "")]


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def _with_interval(value: Mapping[str, Any]) -> str:
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _section(title: str, level: int) -> Iterator[str]:
    yield from ("", f"{'#' * level} {title}", "")


def _items(values: Mapping[str, str]) -> Iterator[str]:
    yield from (f"- **{name}:** {value}" for name, value in values.items())


def _code(*lines: str) -> Iterator[str]:
    yield from ("```", *lines, "```")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
