"""The commands that write texts by the model of a run: `jdl generate`, `jdl translate`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.evaluate import tell_unfinished

SEPARATOR = "-" * 15
"""The line between samples."""


def generate(
    directory: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    prompt: str | None = None,
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    samples: int = 1,
    experiment: Path | None = None,
) -> None:
    """Go on with a text, by the language model of a run; it is printed as it is written.

    Without a prompt it begins after a line break, or where the run's tokenizer knows none, after
    its first token. Where the model's context is full, it reads the last half of it anew and goes
    on. Of several samples the first is printed as it is written and the others when all are done.
    Runs the directory's experiment.py: trust a run directory as you would a script.

    Args:
        directory: a run directory.
        prompt: the text to go on with, which is printed too.
        tokens: how many are written.
        temperature: below 1 keeps to the likely, above 1 strays; 0 always takes the likeliest.
        top_k: draw each token among so many likeliest.
        top_p: draw each token among the likeliest that together have this probability.
        seed: another one gives another text.
        samples: how many texts, with a line of dashes between.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis.reproduce import read_run
    from jdl.decoding import Sampling
    from jdl.inference.generate import open_to_write, write

    sampling = Sampling(temperature, top_k, top_p)
    recorded = read_run(directory, experiment)
    run, tokenizer = open_to_write(directory, recorded.experiment, recorded.file.name)
    tell_unfinished(directory, bool(run.result))
    pieces = []
    for piece in write(run, tokenizer, prompt, tokens, sampling, seed, samples):
        said = piece[0] if pieces else (prompt or "") + piece[0]
        print(said, end="", flush=True)
        pieces.append(piece)
    print()
    for others in list(zip(*pieces, strict=True))[1:]:
        print(f"{SEPARATOR}\n{prompt or ''}{''.join(others)}")


def translate(
    directory: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    text: tuple[str, ...] = (),
    beams: int = 4,
    alpha: float = 0.6,
    experiment: Path | None = None,
) -> None:
    """Translate texts, or the lines of the standard input, by the model of a run.

    Each becomes a line. Runs the directory's experiment.py: trust a run directory as you would a
    script.

    Args:
        directory: a run directory.
        text: to translate, one or several; none: each line of the standard input.
        beams: beginnings that are kept as a translation is searched for; 1 is quickest.
        alpha: power of the penalty on length; more of it favours longer translations.
        experiment: an experiment file of your own to use instead of the directory's.
    """
    from jdl.analysis.reproduce import read_run
    from jdl.inference.predict import check_translates, open_to_predict, translate

    recorded = read_run(directory, experiment)
    check_translates(directory, recorded.experiment)
    task = dataclasses.replace(recorded.experiment.task, beams=beams, alpha=alpha)
    changed = dataclasses.replace(recorded.experiment, task=task)
    run = open_to_predict(directory, changed, recorded.file.name)
    tell_unfinished(directory, bool(run.result))
    for line in translate(run, text or (line.rstrip("\r\n") for line in sys.stdin)):
        print(" ".join(line.split("\n")), flush=True)
