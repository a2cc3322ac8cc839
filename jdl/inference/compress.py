"""Compares networks in size, time and score, with smaller weights and without."""

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import export

from jdl.errors import UserError, nearest
from jdl.inference.export import Weights, export_prediction
from jdl.inference.weights import dequantize, prune, quantize
from jdl.optimizers import decay_mask
from jdl.trainer.run import Run

SECONDS = 1.0
"""Duration of a measurement."""


@dataclass(frozen=True)
class Variant:
    """A network with some weights, measured.

    Attributes:
      run: its directory.
      weights: in which they are exported.
      sparsity: share of zeros in its kernels.
      score: the metric, of the whole split.
      bytes: of the exported file.
      compressed: bytes of the same after DEFLATE, which shortens zeros.
      seconds: of a batch, the shortest of many.
    """

    run: str
    weights: Weights
    sparsity: float
    score: float
    bytes: int
    compressed: int
    seconds: float


def variants(
    runs: Sequence[Run], split: str, metric: str, sparsities: Sequence[float] = (), rows: int = 256
) -> Iterator[Variant]:
    """Measures each run with float32 and int8 weights, as it is and pruned.

    The score is that of the run's evaluation with exactly these weights, the time that of the
    exported function on this device, compiled.

    Args:
      runs: trained ones.
      split: to score.
      metric: of the split.
      sparsities: shares of weights to prune in further variants, without training them again; those
        that a network has already are left out.
      rows: of the batches that are timed.

    Raises:
      UserError: a run has no such metric, or cannot be exported.
    """
    for run in runs:
        state = run.evaluation_state(run.gather_state())
        has = sparsity_of(state.params)
        for sparsity in (0.0, *(x for x in dict.fromkeys(sparsities) if not 0 <= x <= has)):
            pruned = state.replace(params=prune(state.params, sparsity)) if sparsity else state
            for weights in ("fp32", "int8"):
                yield _measure(run, pruned, weights, split, metric, rows)


def _measure(run: Run, state: Any, weights: Weights, split: str, metric: str, rows: int) -> Variant:
    used = state
    if weights == "int8":
        used = state.replace(params=dequantize(quantize(state.params)))
    scores = run.evaluate(split, used)
    if metric not in scores:
        known = ", ".join(scores)
        raise UserError(
            f"{run.workdir} has no metric {metric!r} of {split} (it has {known})"
            f"{nearest(metric, scores)}"
        )
    function = export_prediction(run, state=state, weights=weights)
    file = bytes(function.serialize())
    return Variant(
        run=str(run.workdir),
        weights=weights,
        sparsity=sparsity_of(state.params),
        score=float(scores[metric]),
        bytes=len(file),
        compressed=len(zlib.compress(file)),
        seconds=_seconds(function, rows),
    )


def sparsity_of(params: Any) -> float:
    """Returns the share of zeros among the weights of kernels."""
    kernels = [
        np.asarray(x)
        for x, is_weight in zip(
            jax.tree.leaves(params), jax.tree.leaves(decay_mask(params)), strict=True
        )
        if is_weight
    ]
    return sum(int((x == 0).sum()) for x in kernels) / max(1, sum(x.size for x in kernels))


def _seconds(function: export.Exported, rows: int) -> float:
    """Returns the seconds of a call on a batch of zeros, the shortest of many."""
    shapes = jax.tree.unflatten(function.in_tree, function.in_avals)[1]
    given = {
        name: np.zeros([rows if not isinstance(n, int) else n for n in x.shape], x.dtype)
        for name, x in shapes.items()
    }
    call = jax.jit(function.call)
    jax.block_until_ready(call(**given))
    found, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(call(**given))
        found.append(time.perf_counter() - begin)
    return min(found, default=float("nan"))


def table(found: Sequence[Variant], metric: str) -> list[list[str]]:
    """Returns the header and a row for each variant, compared with the first.

    Args:
      found: the variants, of which the first is the reference.
      metric: their score.
    """
    first = found[0]
    rows = [["run", "weights", "zeros", metric, "change", "bytes", "", "compressed", "", "ms", ""]]
    for each in found:
        rows.append(
            [
                each.run,
                each.weights,
                f"{each.sparsity:.0%}",
                f"{each.score:.4f}",
                f"{each.score - first.score:+.4f}",
                f"{each.bytes:,}",
                f"{each.bytes / first.bytes:.0%}",
                f"{each.compressed:,}",
                f"{each.compressed / first.compressed:.0%}",
                f"{1e3 * each.seconds:.3f}",
                f"{each.seconds / first.seconds:.0%}",
            ]
        )
    return rows
