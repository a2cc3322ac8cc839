"""The share of a device's rate that steps of the same kind were measured to reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jdl.analysis import flops

Kind = Literal["small steps", "convolutions", "recurrences", "matrix products"]

SMALL = 10**8
"""FLOPs of the largest step whose time is that of the calls, not of their arithmetic."""

ACCELERATOR = 1e13
"""FLOP/s of the slowest device that counts as an accelerator."""

STEPS, BODY = 8, 10**9
"""A recurrence takes at least so many steps of fewer FLOPs than this; a longer loop with larger
bodies is one over layers, or over chunks of a loss."""


@dataclass(frozen=True)
class Share:
    """Lowest and highest share of the rate of a large matrix product."""

    lowest: float
    highest: float
    workloads: tuple[str, ...]  # of `python -m benchmarks`


MEASURED: Mapping[str, Mapping[Kind, Share]] = {
    "two cores of an Intel Xeon": {
        "small steps": Share(0.15, 0.15, ("mlp",)),
        "convolutions": Share(0.38, 0.52, ("cnn", "cifar10_resnet", "resnet50")),
        "recurrences": Share(0.62, 0.64, ("lstm", "lstm_lm")),
        "matrix products": Share(0.40, 0.75, ("transformer", "seq2seq", "vit_s16")),
    },
    "an NVIDIA H200": {
        "small steps": Share(0.0006, 0.0006, ("mlp",)),
        "convolutions": Share(0.13, 0.25, ("cnn", "resnet50")),
        "recurrences": Share(0.02, 0.06, ("lstm", "lstm_lm")),
        "matrix products": Share(0.38, 0.67, ("transformer", "vit_s16", "bert_base")),
    },
}
"""By machine and kind; rows of `benchmarks/results`, read by a test."""


def measured(jaxpr: Any, count: int, rate: float) -> tuple[Kind, str, Share]:
    """Returns a step's kind, a machine of the same sort, and the share of its rate seen there.

    Args:
      jaxpr: of a step.
      count: its FLOPs.
      rate: FLOP/s of a device.
    """
    machine = tuple(MEASURED)[rate >= ACCELERATOR]
    found = kind(jaxpr, count)
    return found, machine, MEASURED[machine][found]


def kind(jaxpr: Any, count: int) -> Kind:
    """Returns what most of the time of a step with `count` FLOPs is spent on."""
    if count < SMALL:
        return "small steps"
    if flops.of(jaxpr, convolutions=False) < count / 2:
        return "convolutions"
    # An eighth: a step of a recurrence takes longer than its FLOPs alone say.
    return "recurrences" if _recurrent(jaxpr) >= count / 8 else "matrix products"


def _recurrent(jaxpr: Any) -> int:
    """FLOPs inside of recurrences."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [*flops.held(equation.params)]
        body = sum(map(flops.of, inner)) if equation.primitive.name == "scan" else 0
        length = equation.params.get("length", 0)
        if body and length >= STEPS and body < BODY:
            total += length * body
        else:
            total += sum(map(_recurrent, inner))
    return total
