"""`jdl plan`."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from jdl.cli.arguments import ExperimentName, Overrides
from jdl.files import to_json


def plan(
    experiment: ExperimentName,
    /,
    devices: int | None = None,
    memory: str | None = None,
    flops: float | None = None,
    json_: Annotated[bool, arg(name="json")] = False,
    *,
    overrides: Overrides = None,
) -> None:
    """Estimate parameters, memory and time of a run without compiling, and the batches that fit.

    A table shows the memory of a device and the largest batch that fits, for each strategy,
    precision and remat. Times are lower bounds: those of the matrix products alone. Fields are set
    by their path as for `train`.

    Args:
        devices: number of devices (default: those that the strategy uses here).
        memory: of each device, such as 80GB or 16GiB (default: that of a device here).
        flops: floating-point operations per second of each device, such as 989e12 (default:
            measured here).
        json_: print JSON.
    """
    from jdl.analysis import plan as planning
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    limit = None if memory is None else planning.parse_bytes(memory)
    changed = override(load(experiment).experiment, overrides or {})
    found = planning.plan(changed, devices=devices, memory=limit, rate=flops)
    if json_:
        print(to_json(dataclasses.asdict(found)))
        return
    for line in planning.lines(found):
        print(line)
