"""Pictures of attributions: overlays of images, bars of columns, lanes of series and sounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jdl.media import to_bytes
from jdl.report import plots

SUPPORTS, OPPOSES = (31, 119, 180), (255, 127, 14)
"""Colors of what speaks for the target and against it."""

FAILED = (214, 39, 40)
"""Color of the frame of a map whose method fails a check on the model."""

SHOWN = 240
"""Pixels of the longer side of a picture, at least; smaller ones are enlarged by a whole factor."""


def strengths(values: np.ndarray) -> np.ndarray:
    """Returns attributions of one example scaled to -1 to 1, by their 99th percentile."""
    values = np.asarray(values, np.float64)
    most = np.quantile(np.abs(values), 0.99) if values.size else 0.0
    most = most or np.abs(values).max(initial=0.0)
    return (values / most).clip(-1, 1) if most else np.zeros_like(values)


def overlay_map(image: np.ndarray, values: np.ndarray, failed: bool = False) -> np.ndarray:
    """Returns an image with its attributions in color over it, enlarged.

    Args:
      image: (height, width, 1, 3 or 4), uint8 or floats from 0 to 1.
      values: (height, width) attributions.
      failed: draw a frame that marks a method that fails on the model.

    Returns:
      (height', width', 3) uint8.
    """
    gray = to_bytes(image[None])[0, ..., :3].mean(-1, keepdims=True)
    scaled = strengths(values)[..., None]
    color = np.where(scaled > 0, np.array(SUPPORTS), np.array(OPPOSES))
    # Faint, so that colors are seen on black and on white.
    faint = 255 * 0.35 + 0.45 * gray
    strength = np.abs(scaled) ** 0.7
    mixed = ((1 - strength) * faint + strength * color).round().astype(np.uint8)
    return framed(enlarged(np.broadcast_to(mixed, (*values.shape, 3))), failed)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Returns an image (height, width, ...) enlarged by a whole factor."""
    factor = max(1, SHOWN // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def framed(pixels: np.ndarray, failed: bool) -> np.ndarray:
    """Returns an image, with a red frame and a diagonal if a method has failed."""
    if not failed:
        return np.ascontiguousarray(pixels)
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    draw.rectangle((0, 0, width - 1, height - 1), outline=FAILED, width=4)
    draw.line((0, height - 1, width - 1, 0), fill=FAILED, width=2)
    return np.asarray(canvas)


def as_image(x: np.ndarray) -> np.ndarray:
    """Returns an input (height, width, channels) as floats from 0 to 1 of 1, 3 or 4 channels."""
    if x.dtype == np.uint8 and x.max(initial=0) > 16:
        return x[..., :4] if x.shape[-1] in (1, 3, 4) else x[..., :1]
    x = x.astype(np.float32)
    x = x if x.shape[-1] in (1, 3, 4) else x.mean(-1, keepdims=True)
    low, high = float(x.min()), float(x.max())
    return (x - low) / max(high - low, 1e-12)


def bars(names: Sequence[str], values: np.ndarray, title: str, failed: bool = False) -> Any:
    """Returns a Matplotlib figure with a bar for each column, the strongest first."""
    order = np.argsort(-np.abs(values), kind="stable")[:20].tolist()
    figure = plots.empty(6.5, 0.9 + 0.28 * len(order))
    axes = figure.add_subplot()
    colors = [_fraction(SUPPORTS if values[i] > 0 else OPPOSES) for i in order]
    axes.barh(range(len(order)), values[order], color=colors)
    axes.set_yticks(range(len(order)), [plots.plain(str(names[int(i)]), 40) for i in order])
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_title(plots.plain(title, 90), fontsize=9)
    _mark(axes, failed)
    return figure


def lanes(
    series: np.ndarray, values: np.ndarray, names: Sequence[str], title: str, failed: bool = False
) -> Any:
    """Returns a Matplotlib figure with a lane for each channel, its background colored.

    Args:
      series: (time, channels).
      values: (time, channels) or (time, 1) attributions.
      names: of the channels, or ().
      title: of the figure.
      failed: mark a method that fails on the model.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list(
        "attribution", [_fraction(OPPOSES), (1, 1, 1), _fraction(SUPPORTS)]
    )
    count = min(8, series.shape[1])
    scaled = np.broadcast_to(strengths(values), series.shape)
    figure = plots.empty(8, 0.7 + 1.3 * count)
    for channel in range(count):
        axes = figure.add_subplot(count, 1, channel + 1)
        own = series[:, channel]
        low, high = float(own.min()), float(own.max())
        pad = 0.1 * (high - low) or 1.0
        extent = (-0.5, len(own) - 0.5, low - pad, high + pad)
        axes.imshow(
            scaled[None, :, channel], cmap=colors, vmin=-1, vmax=1, aspect="auto", extent=extent
        )
        axes.plot(own, color="0.15", linewidth=1)
        axes.set_xlim(extent[:2])
        axes.set_ylabel(plots.plain(names[channel], 18) if channel < len(names) else str(channel))
        _mark(axes, failed)
        if channel == 0:
            axes.set_title(plots.plain(title, 90), fontsize=9)
    return figure


def dependence(name: str, values: Sequence[float | str], mean: np.ndarray, each: np.ndarray) -> Any:
    """Returns a Matplotlib figure of the mean scalar by a column's values, over those of rows."""
    figure = plots.empty(6, 3)
    axes = figure.add_subplot()
    words = any(isinstance(value, str) for value in values)
    places = list(range(len(values))) if words else list(map(float, values))
    for row in each[:50]:
        axes.plot(places, row, color="0.85", linewidth=0.6)
    axes.plot(places, mean, color=_fraction(SUPPORTS), linewidth=2, marker="." if words else "")
    if words:
        axes.set_xticks(places, [plots.plain(str(v), 14) for v in values], rotation=45, fontsize=8)
    axes.set(xlabel=plots.plain(name), ylabel="target")
    axes.grid(alpha=0.25)
    return figure


def _fraction(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _mark(axes: Any, failed: bool) -> None:
    if failed:
        for spine in axes.spines.values():
            spine.set_color(_fraction(FAILED))
            spine.set_linewidth(2.5)
