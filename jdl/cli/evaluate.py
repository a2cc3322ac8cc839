"""`jdl evaluate`."""

from typing import Annotated

from tyro.conf import arg

from jdl.cli.arguments import OwnFile, RunDirectory
from jdl.files import to_json


def evaluate(
    directory: RunDirectory,
    /,
    split: str | None = None,
    data__path: Annotated[str | None, arg(name="data.path")] = None,
    allow_changed_data: bool = False,
    experiment: OwnFile = None,
) -> None:
    """Evaluate a run on a split, with its final weights; prints a line of JSON.

    Args:
        split: train, validation or test (default: test; validation for a run that never reads
            test, such as a trial of a search).
        data__path: where the data of the training is now (default: where it was).
        allow_changed_data: evaluate on data that has changed since the training.
    """
    import numpy as np

    from jdl.config.overrides import override
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    known = read_run(directory, experiment).experiment
    if data__path is not None:
        known = override(known, {"data.path": data__path})
    run = restore_run(directory, known, allow_changed_data)
    if split is None:
        scored = run.result.get("metrics", {"test": {}})
        split = "test" if "test" in scored else "validation"
    scores, host_metrics = run.evaluate_with_host_metrics(split)
    signatures = {"signatures": dict(host_metrics.signatures)} if host_metrics else {}
    scores = {name: np.asarray(value).tolist() for name, value in scores.items()}
    print(to_json({"split": split, **scores, **signatures}))
