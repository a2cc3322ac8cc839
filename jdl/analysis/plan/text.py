"""Formats a plan as text, and parses amounts of memory."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import jax

from jdl.analysis.plan.estimate import FILLED, Plan
from jdl.errors import UserError


def parse_bytes(text: str) -> int:
    """Parses `80GB`, `16GiB` or a plain number as bytes.

    Raises:
      UserError: the text is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b?)", text.strip().lower())
    if found is None or not float(found[1]):
        raise UserError(f"{text!r} is not an amount of memory: write 80GB, 16GiB or bytes")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def lines(found: Plan) -> Iterator[str]:
    """Formats a plan as lines of text."""
    yield "parameters"
    for name, count in _grouped(found.modules):
        yield f"  {name:<24} {count:>15,}"
    yield f"  {'total':<24} {found.parameters:>15,}"
    yield ""
    batch = f"{found.batch_size} examples"
    yield f"on each of {found.devices} devices, at the peak of a step on {batch}"
    for field in dataclasses.fields(found.bytes):
        yield f"  {field.name:<24} {_amount(getattr(found.bytes, field.name)):>15}"
    yield f"  {'total':<24} {_amount(found.bytes.total):>15} of {_amount(found.memory)}"
    yield ""
    yield from _times(found)
    yield ""
    share = f"{FILLED:.0%}".replace("%", " %")
    yield f"largest batch that fits in {share} of the memory (and the memory of {batch})"
    settings = list(dict.fromkeys((c.precision, c.remat) for c in found.choices))
    heads = [precision + (", remat" if remat else "") for precision, remat in settings]
    yield f"  {'':<20}" + "".join(f"{head:>22}" for head in heads)
    for name in dict.fromkeys(choice.strategy for choice in found.choices):
        cells = [
            f"{choice.largest or 'none':>8} {'(' + _amount(choice.bytes) + ')':>13}"
            for choice in found.choices
            if choice.strategy == name
        ]
        yield f"  {name:<20}" + "".join(cells)
    for note in found.notes:
        yield f"  {note}"
    if jax.default_backend() == "cpu" and any(choice.remat for choice in found.choices):
        yield "XLA undoes remat on CPUs: its savings are estimated for accelerators"


def _times(found: Plan) -> Iterator[str]:
    """Lower bounds and likely times of a step and a run."""
    if found.flops is None or found.seconds is None or found.share is None:
        return
    whole = found.seconds * found.steps
    yield f"a step has {found.flops:.4g} FLOPs; a device does {found.rate:.3g} FLOP/s"
    yield f"  {'at 100 %, the bound':<24} {found.seconds:.3g} s a step, {whole:.4g} s a run"
    for share in dict.fromkeys((found.share.highest, found.share.lowest)):
        likely = f"at {100 * share:.3g} % of it"
        yield (
            f"  {likely:<24} {found.seconds / share:.3g} s a step, "
            f"{whole / share:.4g} s a run of {found.steps:,} steps"
        )
    yield (
        f"  as measured for {found.kind} on {found.machine} "
        f"({', '.join(found.share.workloads)} of the benchmarks), input and evaluation apart"
    )


def _grouped(modules: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Merges neighbors of one kind and size, such as blocks, to one line."""

    def kind(item: tuple[str, int]) -> tuple[str, int]:
        return re.sub(r"\d+$", "", item[0]), item[1]

    for _, group in itertools.groupby(modules.items(), kind):
        names = list(group)
        (first, count), (last, _) = names[0], names[-1]
        label = first if len(names) == 1 else f"{first} .. {last.rpartition('_')[2]}"
        yield label, count * len(names)


def _amount(count: int) -> str:
    """Formats bytes in a suitable unit."""
    power = min(max(int(math.log2(count or 1)) // 10, 0), 4)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
