"""The commands for before a training: `jdl find-lr`, `jdl find-batch` and `jdl plan`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from jdl.errors import UserError
from jdl.files import to_json


def find_lr(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    png: Path | None = None,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Suggest a learning rate: train a few steps at ever higher ones and see where the loss falls.

    The range test of Smith (2017). Nothing is saved. Fields are set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        low: the first learning rate.
        high: the last one, unless the loss diverges before.
        steps: optimizer steps.
        png: draw the loss by the rate into this file.
    """
    from jdl.analysis import find
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    if png is not None:
        find.figure()  # a missing package is said now, not after the test
    changed = override(load(experiment).experiment, changes or {})
    curve = find.find_lr(changed, low=low, high=high, steps=steps)
    print("learning rate  loss, averaged")
    for rate, loss in list(zip(curve.rates, curve.smoothed, strict=True))[:: max(1, steps // 10)]:
        print(f"{rate:13.1e}  {loss:.4g}")
    if len(curve.rates) < steps:
        print(f"{curve.rates[-1]:13.1e}  the loss diverges")
    if png is not None:
        find.draw(curve, png)
    if curve.suggestion is None:
        raise UserError(f"between {low:g} and {high:g} the loss does not fall for long enough")
    suggestion = f"{curve.suggestion:.1e}".replace("e-0", "e-")
    print(f"--optimizer.learning-rate {suggestion}")


def find_batch(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    largest: int = 4096,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Suggest a batch size: train a few steps with ever larger ones and time them.

    The smallest that reaches 95 % of the best throughput is suggested. Nothing is saved. Fields
    are set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        largest: batch size.
    """
    from jdl.analysis import find
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    changed = override(load(experiment).experiment, changes or {})

    def show(row: find.BatchRow) -> None:
        print(
            f"batch size {row.batch_size}: {row.items_per_second:.1f} items/s, "
            f"{row.seconds * 1e3:.3f} ms a step, {row.memory / 2**20:.0f} MiB at most",
            flush=True,
        )

    search = find.find_batch(changed, largest=largest, report=show)
    print(search.ended)
    print(f"--batch-size {search.suggestion}")


def plan(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    /,
    devices: int | None = None,
    memory: str | None = None,
    flops: float | None = None,
    json_: Annotated[bool, arg(name="json")] = False,
    *,
    changes: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> None:
    """Predict parameters, memory and time before anything is compiled, and what would fit.

    A table says for each strategy, precision and remat what lies on a device, and the largest
    batch that fits. Times are those of the matrix products alone: no step takes less. Fields are
    set by their path as for `train`.

    Args:
        experiment: a Python file, or the name of one in ./experiments or shipped with jdl.
        devices: how many there will be (default: those of the strategy, here).
        memory: of each, such as 80GB or 16GiB (default: that of a device here).
        flops: floating-point operations a second of each, such as 989e12 (default: measured here).
        json_: print JSON.
    """
    from jdl.analysis import plan as planning
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    limit = None if memory is None else planning.parse_bytes(memory)
    changed = override(load(experiment).experiment, changes or {})
    found = planning.plan(changed, devices=devices, memory=limit, rate=flops)
    if json_:
        print(to_json(dataclasses.asdict(found)))
        return
    for line in planning.lines(found):
        print(line)
