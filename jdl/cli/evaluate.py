"""`jdl evaluate`."""

from jdl.cli.arguments import OwnFile, RunDirectory
from jdl.files import to_json


def evaluate(
    directory: RunDirectory, /, split: str | None = None, experiment: OwnFile = None
) -> None:
    """Evaluate a run on a split, with its final weights; prints a line of JSON.

    Args:
        split: train, validation or test (default: test; validation for a run that never reads
            test, such as a trial of a search).
    """
    import numpy as np

    from jdl.trainer.api import open_run
    from jdl.trainer.record import read_run

    recorded = read_run(directory, experiment)
    run = open_run(directory, recorded.experiment)
    if split is None:
        scored = run.result.get("metrics", {"test": {}})
        split = "test" if "test" in scored else "validation"
    scores, host_metrics = run.evaluate_with_host_metrics(split)
    signatures = {"signatures": dict(host_metrics.signatures)} if host_metrics else {}
    scores = {name: np.asarray(value).tolist() for name, value in scores.items()}
    print(to_json({"split": split, **scores, **signatures}))
