"""Self-contained HTML pages; values that are not `Html` are escaped."""

import base64
import html as stdlib_html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdl.files import write_atomically
from jdl.report.plots import png

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 62rem;
       margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-top: .9rem;
     border-top: 1px solid #d8dee4; }
p { margin: .6rem 0; max-width: 50rem; }
.all { max-width: none; }
.all td { white-space: nowrap; }
.quiet { color: #57606a; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.4rem .3rem 0; border-bottom: 1px solid #e6eaee; text-align: left;
         vertical-align: top; }
th { font-weight: 600; border-bottom-color: #8c959f; }
td:first-child { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
pre { background: #f6f8fa; padding: .7rem .9rem; overflow-x: auto; font-size: .88rem; }
.text { line-height: 1.9; max-width: 56rem; }
.text span { padding: .1rem .15rem; border-radius: .2rem; }
.sample { white-space: pre-wrap; }
.strip { display: flex; gap: 1rem; overflow-x: auto; align-items: flex-start; }
.strip figure { margin: 0; flex: 0 0 auto; max-width: 26rem; }
.strip img { margin: 0 0 .2rem; }
"""


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def html(template: str, *values: Any) -> Html:
    """Formats a template with values, escaped unless they are `Html`."""
    return Html(template.format(*map(_escaped, values)))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Concatenates pieces."""
    return Html(between.join(map(_escaped, parts)))


def paragraph(*parts: Any, quiet: bool = False) -> Html:
    """A paragraph of text; pieces are joined without a space."""
    return html('<p class="quiet">{}</p>' if quiet else "<p>{}</p>", join(parts))


def section(title: str, *parts: Any) -> Html:
    """A part of the page with a heading."""
    return html("<section><h2>{}</h2>\n{}</section>", title, join(parts, "\n"))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table; numbers are right-aligned."""
    rows = [list(row) for row in rows]
    numeric = [bool(column) and all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    numeric = numeric or [False] * len(header)

    def line(tag: str, cells: Sequence[Any]) -> Html:
        kinds = [' class="number"' if number else "" for number in numeric]
        return join(
            html(f"<{tag}{kind}>{{}}</{tag}>", shown(cell))
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = join(html("<tr>{}</tr>\n", line("td", row)) for row in rows)
    return html('<div class="wide"><table><tr>{}</tr>\n{}</table></div>', line("th", header), body)


def scores_table(metrics: Mapping[str, Mapping[str, float]]) -> Html:
    """A table of metrics by split."""
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    rows = [[s, *(float(scores.get(n, math.nan)) for n in names)] for s, scores in metrics.items()]
    return table(("", *names), rows)


def value_text(value: Any) -> str:
    """Formats the value of a setting."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown(value: Any) -> Any:
    """Formats a value: four decimals, thousands separators."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


@dataclass(frozen=True)
class Folder:
    """A directory of a page and its figures."""

    path: Path

    def picture(self, name: str, figure: Any, meaning: str) -> Html:
        """Writes a figure as NAME.png and returns its HTML, with a description."""
        pixels = png(figure)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / f"{name}.png").write_bytes(pixels)
        return self.embedded(self.path / f"{name}.png", meaning)

    def embedded(self, file: Path, meaning: str) -> Html:
        """Returns the HTML of a PNG file, with a description."""
        data = base64.b64encode(file.read_bytes()).decode()
        return html('<img alt="{}" src="data:image/png;base64,{}">', meaning, data)

    def page(self, name: str, title: str, *parts: Html, wide: bool = False) -> Path:
        """Writes the page, optionally as wide as the window, and returns its path."""
        self.path.mkdir(parents=True, exist_ok=True)
        head = html('<meta charset="utf-8"><title>{}</title>', title)
        view = '<meta name="viewport" content="width=device-width">'
        text = f'<!doctype html>\n<html lang="en"><head>{head}{view}<style>{STYLE}</style></head>\n'
        text += '<body class="all">' if wide else "<body>"
        text += html("\n<h1>{}</h1>\n{}\n</body></html>\n", title, join(parts, "\n"))
        write_atomically(self.path / name, text)
        return self.path / name


def _escaped(value: Any) -> str:
    return value if isinstance(value, Html) else stdlib_html.escape(str(value))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value == "-" or value.replace(",", "").replace(".", "").isdigit()
    return isinstance(value, (int, float))
