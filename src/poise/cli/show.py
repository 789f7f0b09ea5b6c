"""What a command prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poise.checks import check_number

if TYPE_CHECKING:
    from rich.console import Console

    from poise.report.tables import Table


def show(runs: Sequence[Path], out: Path, *, threshold: float = 0.5) -> None:
    """Write the report and print its table."""
    from rich.text import Text

    from poise.naming import plain
    from poise.report import overview, read_all, summary

    check_number("threshold", threshold, 0, 1)
    audits = read_all(runs)
    frame = summary(audits, threshold=threshold)
    page = overview.write_report(audits, frame, out, threshold=threshold)
    caption = f"referred: right answers that keep their label at a confidence under {threshold:g}"
    show_table(overview.summary_table(frame), caption=caption)
    told = [f"{audit.title}: {overview.finding(audit, threshold=threshold)}" for audit in audits]
    for text in (*told, *overview.warnings(audits), f"report: {plain(str(page))}"):
        _console().print(Text(text), soft_wrap=True)


def show_table(table: Table, *, caption: str | None = None) -> None:
    """Print a table; of lines grouped under a first word, each group's first is bold."""
    from rich.table import Table as Grid
    from rich.text import Text

    from poise.naming import plain

    grid = Grid(*table.heading, box=None, pad_edge=False, caption=caption, caption_justify="left")
    for place, column in enumerate(grid.columns):
        column.justify, column.no_wrap = "left" if place < table.words else "right", place > 0
    grouped = any(not line[0] for line in table.lines)
    for line in table.lines:
        grid.add_row(*(Text(plain(text)) for text in line), style="bold" if grouped and line[0] else None)
    _console().print(grid)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)
