"""Word attributions of a text classifier by occlusion."""

import numpy as np

from jdl.data.text import UNKNOWN
from jdl.report.page import Html, html, join
from jdl.report.run_baselines import class_probabilities
from jdl.trainer.run import Run

SUPPORTS, OPPOSES = "31, 119, 180", "255, 127, 14"
"""Colors, red, green and blue, of words for and against the predicted class."""


def text_of(tokens: np.ndarray, words: tuple[str, ...]) -> str:
    """The words that ids stand for; an unknown one is shown as `[?]`."""
    return " ".join(_word(int(token), words) for token in tokens if token >= UNKNOWN)


def influence(run: Run, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each word of a text adds to the probability of the predicted class.

    It is the fall of this probability when the word alone is replaced by the unknown token
    (occlusion: Zeiler and Fergus, 2014; Li et al., 2016).

    Args:
      run: of a text classifier.
      tokens: ids of the words, (length,) int32.

    Returns:
      influence: (length,), 0 for unknown words and padding.
      probabilities: class probabilities of the whole text, (classes,).
    """
    places = np.flatnonzero(tokens > UNKNOWN)
    variants = np.tile(tokens, (1 + len(places), 1))
    variants[1 + np.arange(len(places)), places] = UNKNOWN
    probabilities = class_probabilities(run, {run.experiment.task.input_names[0]: variants})
    predicted = probabilities[0].argmax()
    changes = np.zeros(len(tokens))
    changes[places] = probabilities[0, predicted] - probabilities[1:, predicted]
    return changes, probabilities[0]


def colored_text(tokens: np.ndarray, changes: np.ndarray, words: tuple[str, ...]) -> Html:
    """A text with each word colored by its influence, relative to the strongest."""
    strongest = max(float(np.abs(changes).max()), 1e-12)

    def word(token: int, change: float) -> Html:
        color = SUPPORTS if change > 0 else OPPOSES
        strength = 0.75 * abs(change) / strongest
        style = f"background: rgba({color}, {strength:.2f})"
        text = _word(token, words)
        return html('<span style="{}" title="{}">{}</span>', style, f"{change:+.4f}", text)

    shown = [word(int(t), float(c)) for t, c in zip(tokens, changes, strict=True) if t >= UNKNOWN]
    return html('<p class="text">{}</p>', join(shown, " "))


def _word(token: int, words: tuple[str, ...]) -> str:
    return words[token] if UNKNOWN < token < len(words) else "[?]"
