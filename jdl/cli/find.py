"""`jdl find-lr` and `jdl find-batch`."""

from pathlib import Path

from jdl.cli.arguments import ExperimentName, Overrides
from jdl.errors import UserError


def find_lr(
    experiment: ExperimentName,
    /,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    png: Path | None = None,
    *,
    overrides: Overrides = None,
) -> None:
    """Suggest a learning rate by a range test: a few steps at rising rates.

    The test of Smith (2017). Nothing is saved. Fields are set by their path as for `train`.

    Args:
        low: first learning rate.
        high: last learning rate, unless the loss diverges before.
        steps: number of optimizer steps.
        png: draw the loss by the learning rate into this file.
    """
    from jdl.analysis import find
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override
    from jdl.report import plots

    if png is not None:
        plots.require()  # reports a missing Matplotlib before the test
    changed = override(load(experiment).experiment, overrides or {})
    curve = find.find_lr(changed, low=low, high=high, steps=steps)
    print("learning rate  loss, averaged")
    for rate, loss in list(zip(curve.rates, curve.smoothed, strict=True))[:: max(1, steps // 10)]:
        print(f"{rate:13.1e}  {loss:.4g}")
    if len(curve.rates) < steps:
        print(f"{curve.rates[-1]:13.1e}  the loss diverges")
    if png is not None:
        png.write_bytes(plots.png(plots.range_test(curve)))
    if curve.suggestion is None:
        raise UserError(
            f"the loss does not fall long enough between {low:g} and {high:g} to suggest a rate: "
            "widen the range by --low and --high, or raise --steps"
        )
    suggestion = f"{curve.suggestion:.1e}".replace("e-0", "e-")
    print(f"--optimizer.learning-rate {suggestion}")


def find_batch(
    experiment: ExperimentName, /, largest: int = 4096, *, overrides: Overrides = None
) -> None:
    """Suggest a batch size: the smallest that reaches 95 % of the best throughput.

    Times a few training steps at sizes that double. Nothing is saved. Fields are set by their path
    as for `train`.

    Args:
        largest: batch size to try.
    """
    from jdl.analysis import find
    from jdl.config.experiment_file import load
    from jdl.config.overrides import override

    changed = override(load(experiment).experiment, overrides or {})

    def show(row: find.BatchRow) -> None:
        print(
            f"batch size {row.batch_size}: {row.items_per_second:.1f} items/s, "
            f"{row.seconds * 1e3:.3f} ms a step, {row.memory / 2**20:.0f} MiB at most",
            flush=True,
        )

    search = find.find_batch(changed, largest=largest, report=show)
    print(search.ended)
    print(f"--batch-size {search.suggestion}")
