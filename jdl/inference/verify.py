"""Verification: whether two files show the same thing, such as one person's face."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jdl.data.readers import Reader
from jdl.errors import UserError
from jdl.inference.predict import read_examples
from jdl.tasks import Embedding
from jdl.trainer.run import Run

THRESHOLD = "equal_error_threshold"
"""Metric that is the default threshold (`jdl.metrics.EqualErrorRate`)."""


def similarities(run: Run, read: Reader, path: Path, others: Sequence[Path]) -> list[float]:
    """Computes the cosine similarity of a file's embedding to those of other files.

    Args:
      run: of the task `Embedding`.
      read: reads the examples of a file (`Data.reader`).
      path: the file.
      others: the other files.

    Returns:
      A number from -1 to 1 for each other file.

    Raises:
      UserError: the run embeds nothing, or a file cannot be read, or is no single example, or its
        embedding has no direction.
    """
    if not isinstance(run.experiment.task, Embedding):
        raise UserError(
            f"verification compares embeddings, and the run's task is "
            f"{type(run.experiment.task).__name__}: name a run of the task Embedding"
        )
    examples = []
    for each in (path, *others):
        found = read_examples(run, read, each)
        if len(found) != 1:
            raise UserError(f"{each} holds {len(found)} examples: give files of one example each")
        examples += found
    arrays = {name: [one[name] for one in examples] for name in examples[0]}
    x = np.asarray(run.predict(arrays), np.float64)
    lengths = np.linalg.norm(x, axis=1)
    for each, length in zip((path, *others), lengths, strict=True):
        if not (length > 0 and np.isfinite(length)):
            raise UserError(
                f"the embedding of {each} has the length {length}, and no direction to compare: "
                f"train the run further, or with a lower learning rate"
            )
    x /= lengths[:, None]
    return (x[1:] @ x[0]).clip(-1, 1).tolist()


def known_threshold(run: Run) -> float:
    """Returns the threshold of equal error that the finished run measured.

    Raises:
      UserError: it measured none.
    """
    splits = run.result.get("metrics", {})
    for split in ("validation", "test"):
        value = splits.get(split, {}).get(THRESHOLD)
        if value is not None and np.isfinite(value):
            return float(value)
    raise UserError(
        f"the run has measured no {THRESHOLD}: give one with --threshold, or train to the end with "
        f"EqualErrorRate(threshold=True) in task.metrics"
    )
