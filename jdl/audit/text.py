"""Audits as text."""

from collections.abc import Iterator, Mapping, Sequence

from jdl.audit.report import Audit, Gap, Grouping, Value

MOST_CLASSES = 2
"""Classes whose rates are shown by group; of more, the gaps alone."""


def audit_lines(audit: Audit) -> Iterator[str]:
    """Yields the lines of an audit for a terminal."""
    where = f" of the {audit.split} split" if audit.split else ""
    settings = audit.settings
    yield (
        f"{audit.examples:,} examples{where}; intervals of {settings['confidence']:.0%} from "
        f"{settings['replicas']:,} stratified bootstrap samples"
    )
    shown = ["accuracy", "nll", "ece"]
    if len(audit.classes) <= MOST_CLASSES:
        shown += [name for name in audit.overall if "[" in name]
    lines = [
        ["", "examples", *shown],
        ["all", f"{audit.examples:,}", *_cells(audit.overall, shown)],
    ]
    yield from table_lines(lines)
    for grouping in audit.groupings:
        yield ""
        yield from _grouping(grouping, shown, settings["min_count"])
    yield ""
    yield from _needs(audit)


def _needs(audit: Audit) -> Iterator[str]:
    """Yields whether groups are needed at prediction time, and what thresholds of groups do."""
    reads = f"the model reads {', '.join(audit.inputs)}" if audit.inputs else "no input is one"
    needed = "needed" if audit.inputs else "not needed"
    yield f"groups are {needed} at prediction time: {reads}"
    if (found := audit.thresholds) is not None:
        edges = ", ".join(f"{group} {edge:.3f}" for group, edge in found.thresholds.items())
        yield (
            f"thresholds by {found.column} for {found.criterion}, fitted on {found.split}: {edges}"
        )
        yield (
            f"  gap {found.gap[0]:.3f} -> {found.gap[1]:.3f}, accuracy {found.accuracy[0]:.3f} -> "
            f"{found.accuracy[1]:.3f}; they need the group at prediction time"
        )


def _grouping(grouping: Grouping, shown: Sequence[str], min_count: int) -> Iterator[str]:
    lines = [[grouping.column, "examples", *shown]]
    for group, count in grouping.counts.items():
        own = {name: values[group] for name, values in grouping.scores.items() if group in values}
        lines.append([group, f"{count:,}", *(_cells(own, shown) if own else ["-"] * len(shown))])
    yield from table_lines(lines)
    if grouping.small:
        yield f"not scored, below {min_count} examples: {', '.join(grouping.small)}"
    rows = [["largest difference", "", "p", "lowest", "highest"]]
    rows += [_gap(name, gap) for name, gap in grouping.gaps.items()]
    yield from table_lines(rows)
    yield f"worst group by accuracy: {grouping.worst_group}"


def _gap(name: str, gap: Gap) -> list[str]:
    p = "-" if gap.p_value != gap.p_value else f"{gap.p_value:.4f}"
    return [name, _cell(gap.difference), p, gap.lowest, gap.highest]


def _cells(scores: Mapping[str, Value], names: Sequence[str]) -> list[str]:
    return [_cell(scores[name]) for name in names]


def _cell(value: Value) -> str:
    if value.value != value.value:
        return "-"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def table_lines(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields lines with their cells in columns, one beside another."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()
