"""Says words with a run that synthesizes speech."""

from collections.abc import Sequence

import numpy as np

from jdl.errors import UserError, nearest
from jdl.media import Sounds
from jdl.tasks import SpeechSynthesis
from jdl.tasks.speech import split_name
from jdl.trainer.run import Run
from jdl.typing import Key

QUIET = 0.02
"""Share of a sound's peak below which its ends are cut off."""


def speak(
    run: Run, text: str, speaker: str | None = None, key: Key | None = None, pause: float = 0.1
) -> Sounds:
    """Says a text, word by word.

    Args:
      run: whose task is `SpeechSynthesis`.
      text: words, divided by spaces; what is no word is read as one word per character, as digits.
      speaker: who says it; None: the first in alphabetical order.
      key: of the random numbers; None: key 0.
      pause: seconds of silence between words.

    Returns:
      One sound.

    Raises:
      UserError: the run does not synthesize speech, or has no such word or speaker.
    """
    task = run.experiment.task
    if not isinstance(task, SpeechSynthesis):
        raise UserError(
            f"the task {type(task).__name__} does not speak: train one such as "
            f"jdl.tasks.SpeechSynthesis"
        )
    if not pause >= 0:
        raise UserError(f"the pause is at least 0 seconds, not {pause}")
    labels = word_labels(text, speaker, run.experiment.data.output_names())
    sounds = run.sample(len(labels), key, label=labels)
    assert isinstance(sounds, Sounds)
    silence = np.zeros(round(pause * sounds.sample_rate), np.float32)
    parts = [part for wave in sounds.waves for part in (silence, trimmed(wave))]
    return Sounds(np.concatenate(parts[1:])[None], sounds.sample_rate)


def word_labels(text: str, speaker: str | None, names: Sequence[str]) -> list[int]:
    """Returns the class of each word of a text.

    Raises:
      UserError: a word or the speaker is unknown, or there are no words.
    """
    number = {split_name(name): index for index, name in enumerate(names)}
    speakers = sorted({known for _, known in number})
    speaker = speakers[0] if speaker is None else speaker
    if speaker not in speakers:
        raise UserError(
            f"there is no speaker {speaker!r} (there are {', '.join(speakers)})"
            f"{nearest(speaker, speakers)}"
        )
    words = [word for word, known in number if known == speaker]
    found: list[str] = []
    for part in text.split():
        found += [part] if part in words else part
    if not found:
        raise UserError("there is nothing to say: the text has no words")
    for word in found:
        if word not in words:
            raise UserError(
                f"{speaker} does not say {word!r} (but {', '.join(words)}){nearest(word, words)}"
            )
    return [number[word, speaker] for word in found]


def trimmed(wave: np.ndarray) -> np.ndarray:
    """Returns a sound (samples,) without its quiet ends."""
    loud = np.flatnonzero(np.abs(wave) > QUIET * np.abs(wave).max(initial=0))
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]
