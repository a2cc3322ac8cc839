"""HTML gallery of explanations: what a method says of predictions, with its card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data import Interactions, Words
from jdl.data.text import UNKNOWN
from jdl.explain.cards import MOST_ALIKE, Card, last_correlation
from jdl.explain.explanations import Explanations
from jdl.explain.features import table_columns, table_of
from jdl.media import Images
from jdl.report import attributions, plots
from jdl.report.page import Folder, Html, html, join, paragraph, section, table
from jdl.tasks import AdversarialClassification, BinaryClassification, Classification
from jdl.trainer.run import Run

LANES = 8
"""Channels of a series up to which each has a lane; more of them are an image, as a spectrum is."""

LIMIT = 512
"""Examples of a split among which those to show are chosen."""

ABOUT = {
    "completeness": "largest error of the sum of attributions; below 0.01 it is complete",
    "randomization": f"correlation with the map of random last layers; below {MOST_ALIKE}, or the "
    "map does not show what was learned",
    "random_logit": "correlation with the map of another class",
    "deletion": "mean of the target while the most important sites are deleted: low is good",
    "random_deletion": "the same of a random map",
    "insertion": "mean of the target while they are inserted: high is good",
    "random_insertion": "the same of a random map",
    "infidelity": "error of the changes it tells: 0 is perfect, 1 tells nothing",
    "sensitivity": "relative change of the map where the input changes by 2 % of its range",
    "inside": "share of the positive attribution inside true boxes or masks",
    "area": "share of the image that these cover, with which a random pixel is inside",
    "pointing": "share of maps whose highest pixel is inside",
    "center": "share of images whose center pixel is inside",
}
"""What each check of a card means."""


@dataclass(frozen=True)
class Chosen:
    """Examples of a split that are shown.

    Attributes:
      groups: titles such as `Right`, each with the places in `examples`.
      examples: arrays (rows, ...).
      captions: of each row.
    """

    groups: Mapping[str, Sequence[int]]
    examples: Mapping[str, np.ndarray]
    captions: Sequence[str]


def choose(run: Run, split: str, count: int) -> Chosen:
    """Chooses examples of a split: of a classifier some right, wrong and uncertain, else spread.

    Args:
      run: whose predictions are explained.
      split: of the examples.
      count: of examples at most.

    Raises:
      UserError: there is no such split.
    """
    pipeline, task = run.pipeline(split), run.experiment.task
    spread = np.linspace(0, len(pipeline) - 1, min(LIMIT, len(pipeline))).round().astype(int)
    if not isinstance(task, (Classification, BinaryClassification, AdversarialClassification)):
        places = spread[np.linspace(0, len(spread) - 1, min(count, len(spread))).astype(int)]
        captions = [f"example {place}" for place in places]
        return Chosen({split: range(len(places))}, pipeline.examples(places), captions)
    examples = pipeline.examples(spread)
    found = run.predict_rows(examples)
    shares = found if found.ndim == 2 else np.stack([1 - found, found], 1)
    labels = np.asarray(examples[task.targets])
    labels = labels.argmax(-1) if labels.ndim == 2 else labels.astype(int)
    predicted, sure = shares.argmax(1), shares.max(1)
    names = run.experiment.data.output_names()
    right, wrong = np.flatnonzero(predicted == labels), np.flatnonzero(predicted != labels)
    kinds = {
        "Right": right[np.linspace(0, len(right) - 1, len(right)).astype(int)],
        "Wrong, the surest first": wrong[np.argsort(-sure[wrong], kind="stable")],
        "Uncertain": np.argsort(sure, kind="stable"),
    }
    groups: dict[str, Sequence[int]] = {}
    taken: list[int] = []
    for number, (title, places) in enumerate(kinds.items()):
        fresh = [place for place in places.tolist() if place not in taken]
        most = (count - len(taken)) // (len(kinds) - number)
        own = fresh[:: max(1, len(fresh) // max(1, most))] if title == "Right" else fresh
        groups[title] = range(len(taken), len(taken) + len(own[:most]))
        taken += own[:most]

    def name(label: int) -> str:
        return names[label] if len(names) == shares.shape[1] else str(label)

    captions = [
        f"example {spread[i]}: predicted {name(int(predicted[i]))} ({sure[i]:.2f}), "
        f"true {name(int(labels[i]))}"
        for i in taken
    ]
    rows = {key: array[np.array(taken, int)] for key, array in examples.items()}
    return Chosen({t: rows for t, rows in groups.items() if len(rows)}, rows, captions)


def write_gallery(
    out: Path, run: Run, chosen: Chosen, found: Mapping[str, Explanations], extra: Sequence[Html]
) -> Path:
    """Writes a page about explanations, and a picture of each.

    Args:
      out: folder, created if it does not exist.
      run: whose predictions they are of.
      chosen: the examples.
      found: explanations by the name of their method, of all examples each.
      extra: further sections.

    Returns:
      The page.
    """
    folder, parts = Folder(out), []
    cards = {name: each.card for name, each in found.items() if each.card is not None}
    if cards:
        parts.append(_cards(cards))
    for title, places in chosen.groups.items():
        shown = [_example(folder, run, chosen, found, place) for place in places]
        parts.append(section(title, *shown))
    about = (
        "Blue speaks for the target, orange against it. A red frame marks a method that fails a "
        "check on this model."
    )
    return folder.page("index.html", f"Explanations: {run.name}", paragraph(about), *parts, *extra)


def _cards(cards: Mapping[str, Card]) -> Html:
    """A table of the checks of each method, with their meaning, and the sentences on failures."""
    means = {name: card.mean() for name, card in cards.items()}
    rows = []
    for check, meaning in ABOUT.items():
        values = [mean.get(check) for mean in means.values()]
        if check == "randomization":
            values = [last_correlation(card.randomization) for card in cards.values()]
        if any(value is not None for value in values):
            shown = ["-" if value is None else float(value) for value in values]
            rows.append([check.replace("_", " "), *shown, meaning])
    failures = [
        paragraph(html("<strong>{}</strong> fails on this model: {}.", name, sentence))
        for name, card in cards.items()
        for sentence in card.failures
    ]
    layers = [
        paragraph(
            f"{name}, layer by layer from the last: "
            + ", ".join(f"{layer} {value:.2f}" for layer, value in card.randomization),
            quiet=True,
        )
        for name, card in cards.items()
        if card.randomization
    ]
    return section("Cards", table(("check", *cards, "meaning"), rows), *failures, *layers)


def _example(
    folder: Folder, run: Run, chosen: Chosen, found: Mapping[str, Explanations], place: int
) -> Html:
    """The pictures of one example, one for each method."""
    shown = [paragraph(chosen.captions[place], quiet=True)]
    figures = []
    for name, each in found.items():
        failures = () if each.card is None else each.card.failures
        caption = f"{name}: {each.names[place]}, score {each.scores[place]:.3f}"
        if failures:
            caption += " (fails on this model: " + "; ".join(failures) + ")"
        picture = _picture(folder, run, each, place, f"{place:05d}-{name}", bool(failures))
        figures.append(html("<figure>{}<figcaption>{}</figcaption></figure>", picture, caption))
    return join([*shown, html('<div class="strip">{}</div>', join(figures, "\n"))], "\n")


def _picture(
    folder: Folder, run: Run, each: Explanations, place: int, name: str, failed: bool
) -> Html:
    """The picture of one example by one method, also written as a file."""
    parts = []
    for number, (key, maps) in enumerate(each.maps().items()):
        own, file = np.asarray(maps[place]), name if not number else f"{name}-{key}"
        x = each.request.x[key][place]
        if key in each.request.subject.embedded:
            tokens = np.atleast_1d(each.examples[key][place])
            parts.append(_words(run, key, tokens, own, failed))
        elif x.ndim == 3 or (x.ndim == 2 and x.shape[1] > LANES):
            # A spectrum has time along its width, low frequencies at the bottom.
            shown, own = (x, own) if x.ndim == 3 else (x.T[::-1, :, None], own.T[::-1])
            pixels = attributions.overlay_map(attributions.as_image(shown), own, failed)
            folder.path.mkdir(parents=True, exist_ok=True)
            path = Images(pixels[None]).write(folder.path / file)
            parts.append(folder.embedded(path, f"{name} of example {place}"))
        else:
            names = () if number else run.experiment.data.output_names()
            figure = _figure(run, each, key, own, place, names, failed)
            parts.append(folder.picture(file, figure, f"{name} of example {place}"))
    return join(parts)


def _figure(
    run: Run,
    each: Explanations,
    key: str,
    own: np.ndarray,
    place: int,
    names: Sequence[str],
    failed: bool,
) -> Any:
    """Bars of the columns of a table or a vector, lanes of a series with names of channels."""
    plots.require()
    title, x = each.names[place], each.request.x[key][place]
    if x.ndim == 2:
        return attributions.lanes(x, own.reshape(len(x), -1), names, title, failed)
    columns, names = table_columns(run.experiment.data)
    if key in columns and table_of(run.experiment.data) is not None:
        own = np.bincount(columns[key], own.ravel(), len(names))
    else:
        names = [f"{key} {index}" for index in range(own.size)]
    return attributions.bars(names, own.ravel(), title, failed)


def _words(run: Run, key: str, tokens: np.ndarray, values: np.ndarray, failed: bool) -> Html:
    """A text with each word colored by its attribution."""
    strengths = attributions.strengths(values)
    words = token_texts(run, tokens[: len(values)], key)
    shown = []
    for word, strength, value in zip(words, strengths, values, strict=True):
        if word is None:
            continue
        color = attributions.SUPPORTS if strength > 0 else attributions.OPPOSES
        style = f"background: rgba({', '.join(map(str, color))}, {0.75 * abs(strength):.2f})"
        shown.append(html('<span style="{}" title="{}">{}</span>', style, f"{value:+.4f}", word))
    frame = "border: 3px solid rgb(214, 39, 40)" if failed else ""
    return html('<p class="text" style="{}">{}</p>', frame, join(shown, " "))


def token_texts(run: Run, tokens: np.ndarray, key: str = "") -> list[str | None]:
    """Returns the text of each token of an input; None for padding."""
    data = run.experiment.data
    if isinstance(data, Interactions):
        known = data.fitted()["items" if key == data.array_names[0] else "users"]
        return [known[t - 1] if 0 < t <= len(known) else None for t in tokens.tolist()]
    if isinstance(data, Words):
        known = data.vocabulary_words()
        return [
            None if t < UNKNOWN else known[t] if UNKNOWN < t < len(known) else "[?]"
            for t in tokens.tolist()
        ]
    if data.has_tokenizer:
        tokenizer = data.tokenizer()
        padding = 0 if tokenizer.decode([0]) == "" else -1
        return [
            None
            if t < 0 or t == padding
            else tokenizer.decode([t]).replace("\n", "\u21b5") or "\u2022"
            for t in tokens.tolist()
        ]
    return [str(t) if t > 0 else None for t in tokens.tolist()]
