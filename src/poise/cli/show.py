"""What a command prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from poise.checks import check_number


def show(runs: Sequence[Path], out: Path, *, threshold: float = 0.5) -> None:
    """Write the report and print its table."""
    from rich.console import Console
    from rich.table import Table

    from poise.report import html, read, summary, tables

    check_number("threshold", threshold, 0, 1)
    audits = [read(run) for run in runs]
    frame = summary(audits, threshold=threshold)
    page = html.write(audits, frame, out, threshold=threshold)
    caption = f"referred: right answers with a confidence under {threshold:g}"
    table = Table(*tables.HEADING, box=None, pad_edge=False, caption=caption, caption_justify="left")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "left" if place < 2 else "right", place > 0
    for line in tables.cells(frame):
        table.add_row(*line, style="bold" if line[0] else None)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for warning in html.warnings(audits):
        console.print(warning, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {page}", soft_wrap=True)


def show_table(lines: Iterable[Sequence[str]]) -> None:
    """Print a table whose first line is its heading."""
    from rich.console import Console
    from rich.table import Table

    heading, *rows = lines
    table = Table(*heading, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for line in rows:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
