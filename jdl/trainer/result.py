"""The end of a run: scores of every split, and `result.json`."""

from collections.abc import Callable, Mapping

import jax

from jdl.files import RunDirectory, write_json, write_lines
from jdl.metrics import scalars
from jdl.trainer import record
from jdl.trainer.environment import peak_bytes, versions
from jdl.trainer.training_run import TrainingRun
from jdl.typing import Json


def write(
    run: TrainingRun,
    step: int,
    timing: Callable[[], Mapping[str, float]],
    running: Mapping[str, float],
) -> None:
    """Evaluates each split once, the test split included, and writes the run's result.

    Args:
      run: with the weights that the run ends with; `run.result` is set.
      step: the last step.
      timing: returns the run's seconds until now, called after the evaluations.
      running: training metrics of the last epoch, reported if the train split is not evaluated.
    """
    experiment = run.experiment
    metrics: dict[str, Json] = {}
    arrays: dict[str, Json] = {}  # metrics that are no numbers, such as a confusion matrix
    signatures: dict[str, str] = {}
    for split in (name for name in ("train", "validation", "test") if name in run.data.names):
        if split == "train" and not run.evaluates_train:
            metrics[split] = dict(running)
            continue
        values, host_metrics = run.evaluate_with_host_metrics(split)
        metrics[split] = scalars(values)
        if found := {name: x.tolist() for name, x in values.items() if name not in metrics[split]}:
            arrays[split] = found
        if host_metrics is not None:
            signatures |= host_metrics.signatures
            if host_metrics.lines:
                write_lines(RunDirectory(run.workdir).predictions(split), host_metrics.lines)
    seconds = timing()
    training = seconds["training_seconds"]
    params, devices = run.params, experiment.strategy.used()
    run.result = {
        "experiment": run.name,
        "step": step,
        "metrics": metrics,
        "train_metrics": "evaluated" if run.evaluates_train else "running",
        **({"arrays": arrays} if arrays else {}),
        **({"signatures": signatures} if signatures else {}),
        "params_sha256": record.params_sha256(params),
        **{
            name: round(seconds[name], 3)
            for name in ("seconds", "compile_seconds", "input_seconds")
        },
        "items_per_second": round(step * experiment.batch_size / training if training else 0.0, 1),
        "traces": dict(run.traces),
        "peak_bytes": peak_bytes(devices),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "device": f"{len(devices)} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }
    if jax.process_index() == 0:
        write_json(RunDirectory(run.workdir).result, run.result)
