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
    from rich.text import Text

    from poise.naming import plain
    from poise.report import html, read_all, summary, tables

    check_number("threshold", threshold, 0, 1)
    audits = read_all(runs)
    frame = summary(audits, threshold=threshold)
    page = html.write(audits, frame, out, threshold=threshold)
    caption = f"referred: right answers that keep their label at a confidence under {threshold:g}"
    table = Table(*tables.HEADING, box=None, pad_edge=False, caption=caption, caption_justify="left")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "left" if place < 2 else "right", place > 0
    for line in tables.cells(frame):
        table.add_row(*map(Text, line), style="bold" if line[0] else None)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    told = [f"{audit.title}: {html.finding(audit, threshold=threshold)}" for audit in audits]
    for text in (*told, *html.warnings(audits), f"report: {plain(str(page))}"):
        console.print(Text(text), soft_wrap=True)


def show_table(lines: Iterable[Sequence[str]]) -> None:
    """Print a table whose first line is its heading."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from poise.naming import plain

    heading, *rows = lines
    table = Table(*heading, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for line in rows:
        table.add_row(*(Text(plain(cell)) for cell in line))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
