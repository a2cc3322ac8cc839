"""Translates texts with a trained run."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jdl.data import Pairs
from jdl.data.text import as_text
from jdl.data.tokenizers import PAD
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.tasks import Translation
from jdl.tasks.translation import texts as decoded
from jdl.trainer.run import Run


def check_translation_run(workdir: Path, experiment: Experiment) -> None:
    """Checks that a run translates texts.

    Raises:
      UserError: it has another task or other data.
    """
    task, data = experiment.task, experiment.data
    if not (isinstance(task, Translation) and isinstance(data, Pairs)):
        raise UserError(
            f"{workdir} holds a run of {type(task).__name__} on {type(data).__name__}: only "
            f"Translation on Pairs translates texts"
        )


def translate(run: Run, texts: Iterable[str]) -> Iterator[str]:
    """Translates texts, a batch at a time.

    Args:
      run: a run of `Translation` on `Pairs`.
      texts: read lazily, a batch ahead of the results.

    Yields:
      The translation of each text, in order.

    Raises:
      UserError: a text is empty, or too long for the model.
    """
    data: Any = run.experiment.data
    lines, count = iter(texts), 0
    context = getattr(run.experiment.model, "max_position_embeddings", math.inf)
    while some := list(itertools.islice(lines, run.experiment.batch_size)):
        rows = data.encode([as_text(text) for text in some])
        lengths = (rows != PAD).sum(1)
        for text, length in zip(some, lengths, strict=True):
            count += 1
            if not text.strip():
                raise UserError(f"text {count} is empty: there is nothing to translate")
            if length > context:
                raise UserError(
                    f"text {count} has {length} tokens, more than the model's context of {context}"
                )
        found = run.predict_rows({run.experiment.task.input_names[0]: rows})
        yield from decoded(found, data.tokenizer())
    if not count:
        raise UserError("there is no text to translate: give --text, or lines to read")
