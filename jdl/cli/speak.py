"""`jdl speak`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def speak(
    directory: RunDirectory,
    text: Annotated[Positional[str], arg(metavar="TEXT")],
    /,
    out: Path = Path("speech.wav"),
    speaker: str | None = None,
    seed: int = 0,
    pause: float = 0.1,
    experiment: OwnFile = None,
) -> None:
    """Say a text with a run that synthesizes speech; writes a WAV file and prints its path.

    Args:
        out: the file, replaced if it exists; it ends in .wav.
        speaker: who says it (default: the first in alphabetical order).
        seed: of the random numbers.
        pause: seconds of silence between words.
    """
    import jax

    from jdl.errors import UserError
    from jdl.inference.speak import speak
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if out.suffix != ".wav":
        raise UserError(f"--out {out} must end in .wav")
    if not out.parent.is_dir():
        raise UserError(f"there is no directory {out.parent} to write {out.name} into")
    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    sound = speak(run, text, speaker, jax.random.key(seed), pause)
    print(sound.write(out.with_suffix("")))
