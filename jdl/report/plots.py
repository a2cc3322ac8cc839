"""Matplotlib figures (extra `report`), drawn without global state."""

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdl.analysis.find import LrCurve
from jdl.errors import UserError, install_command

CELLS = 12
"""Classes up to which a confusion matrix has its counts written in."""


def require() -> None:
    """Checks that Matplotlib is installed.

    Raises:
      UserError: it is missing; names the extra to install.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"pictures need an extra: {install_command('report')}")


def empty(width: float, height: float) -> Any:
    """An empty figure of a size in inches, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return stream.getvalue()


def curves(lines: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Any:
    """A panel per metric, with a line per name: values by step."""
    columns = len(lines) if len(lines) < 4 else 2
    rows = math.ceil(len(lines) / columns)
    figure = empty(9.5 if columns > 1 else 7.5, (2.7 if columns == 3 else 3.3) * rows)
    for index, (metric, named) in enumerate(lines.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        drawn = [
            axes.plot(steps, values, marker="." if len(steps) <= 30 else "", linewidth=1.4)[0]
            for steps, values in named.values()
        ]
        axes.set_xlabel("step")
        axes.set_ylabel(plain(metric))
        axes.grid(alpha=0.25)
        axes.legend(drawn, [plain(name) for name in named], fontsize="small", frameon=False)
    return figure


def confusion_matrix(counts: np.ndarray) -> Any:
    """The confusion matrix, normalized by true class; a small one shows counts."""
    size = len(counts)
    side = min(7.5, 2.2 + 0.38 * size)
    figure = empty(side, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    if size <= CELLS:
        axes.set_xticks(range(size))
        axes.set_yticks(range(size))
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black" if count else "0.75"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    return figure


def precision_recall(lines: Mapping[str, np.ndarray]) -> Any:
    """Precision by recall, a line per class; values at recalls evenly spaced from 0 to 1."""
    figure = empty(6, 4.5)
    axes = figure.add_subplot()
    drawn = [
        axes.plot(np.linspace(0, 1, len(values)), values, linewidth=1.4)[0]
        for values in lines.values()
    ]
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    names = [f"{plain(name)}, AP {values.mean():.3f}" for name, values in lines.items()]
    axes.legend(drawn, names, fontsize="small", frameon=False, loc="lower left")
    return figure


def range_test(curve: LrCurve) -> Any:
    """The loss by the learning rate of a range test, and its suggestion."""
    figure = empty(6, 4)
    axes = figure.add_subplot()
    axes.semilogx(curve.rates, curve.losses, color="0.8", label="loss of the batch")
    axes.semilogx(curve.rates, curve.smoothed, label="averaged")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color="0.5", linestyle=":", label=f"{curve.suggestion:.1e}")
    # Without the largest losses, which would flatten the rest.
    low, high = curve.smoothed.min(), np.quantile(curve.smoothed, 0.9)
    margin = 0.2 * (high - low) or 1.0
    axes.set(xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin))
    axes.legend()
    return figure


def data_curve(metrics: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> Any:
    """A panel per metric: mean, least and most by the number of training examples."""
    figure = empty(4.6 * len(metrics), 3.6)
    for index, (metric, values) in enumerate(metrics.items()):
        axes = figure.add_subplot(1, len(metrics), index + 1)
        examples, mean, low, high = np.array(values).T
        axes.fill_between(examples, low, high, alpha=0.2, linewidth=0)
        axes.semilogx(examples, mean, marker="o", linewidth=1.4)
        axes.set(xlabel="training examples", ylabel=plain(metric))
        axes.grid(alpha=0.25)
    return figure


def pictures(images: np.ndarray, titles: Sequence[str]) -> Any:
    """Images (n, height, width[, channels]) in rows of six, on one intensity scale."""
    columns = min(6, len(images))
    rows = math.ceil(len(images) / columns)
    figure = empty(1.6 * columns, 1.95 * rows)
    low, high = float(images.min()), float(images.max())
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        scaled = (image.astype(np.float32) - low) / max(high - low, 1e-12)
        axes.imshow(scaled.squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    return figure


def forecasts(truth: np.ndarray, found: np.ndarray, names: Sequence[str], last: int = 150) -> Any:
    """Forecasts over true values, both (points, targets); a long series also shows its end."""
    starts = [0] if len(truth) <= 2 * last else [0, len(truth) - last]
    figure = empty(9.5, 2.9 * len(names) * len(starts))
    panels = [(target, start) for target in range(len(names)) for start in starts]
    for index, (target, start) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        places = np.arange(start, len(truth))
        (true,) = axes.plot(places, truth[start:, target], color="0.45", linewidth=1)
        (predicted,) = axes.plot(places, found[start:, target], color="tab:blue", linewidth=1.2)
        axes.set_ylabel(plain(names[target]))
        axes.grid(alpha=0.25)
        axes.legend([true, predicted], ["truth", "forecast"], fontsize="small", frameon=False)
        axes.set_xlabel("window of the split")
    return figure


def plain(text: str, length: int = 60) -> str:
    """Escapes text for Matplotlib, which parses `$` and hides labels in `_`, and truncates it."""
    text = text if len(text) <= length else text[: length - 3] + "..."
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
