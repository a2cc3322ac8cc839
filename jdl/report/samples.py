"""The samples of a run, in the order of training."""

import base64
from pathlib import Path

from jdl.files import RunDirectory
from jdl.hooks import Sample
from jdl.report.page import Html, html, join, paragraph, section
from jdl.trainer.run import Run

MOST = 8
"""Steps in a strip; of more, these are spread evenly, the first and the last among them."""


def sections(run: Run) -> list[Html]:
    """A strip of samples for each `Sample` hook that has written any."""
    found = []
    for hook in run.experiment.hooks:
        if not isinstance(hook, Sample):
            continue
        files = sorted(RunDirectory(run.workdir).samples(hook.folder).glob("step-*.*"))
        if files:
            about = f"{hook.count} samples of the same random keys at each step, seed {hook.seed}."
            title = "Samples" if hook.folder == "samples" else f"Samples: {hook.folder}"
            found.append(section(title, paragraph(about), strip(files)))
    return found


def strip(files: list[Path]) -> Html:
    """Files named `step-NUMBER` side by side, each with its step."""
    last = len(files) - 1
    chosen = [files[round(i * last / (MOST - 1))] for i in range(MOST)] if last >= MOST else files
    figures = (
        html("<figure>{}<figcaption>step {}</figcaption></figure>", _shown(file), _step(file))
        for file in chosen
    )
    return html('<div class="strip">{}</div>', join(figures, "\n"))


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _shown(file: Path) -> Html:
    if file.suffix == ".txt":
        return html('<pre class="sample">{}</pre>', file.read_text(encoding="utf-8"))
    data = base64.b64encode(file.read_bytes()).decode()
    if file.suffix == ".wav":
        return html('<audio controls src="data:audio/wav;base64,{}"></audio>', data)
    return html('<img alt="samples of step {}" src="data:image/png;base64,{}">', _step(file), data)
