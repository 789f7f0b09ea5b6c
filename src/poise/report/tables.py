"""Tables as people read them, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poise.report import escaping


@dataclass(frozen=True)
class Table:
    """A table of texts, written the same way wherever it goes.

    >>> table = Table(["attack", "ECE"], [["a|b", "0.1 ± 0.2"]])
    >>> print(table.markdown())
    | attack | ECE |
    | --- | ---: |
    | a&#124;b | 0.1 ± 0.2 |
    <BLANKLINE>
    """

    heading: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int = 1  # columns at the left that hold words; numbers stand in the others

    @classmethod
    def of(cls, rows: Iterable[Sequence[object]]) -> Table:
        """Of rows of values, the first of them the heading; a dash stands for None."""
        heading, *lines = [["-" if value is None else str(value) for value in row] for row in rows]
        return cls(heading, lines)

    def markdown(self) -> str:
        """The table in Markdown, every text as it is."""
        first, *rest = [map(escaping.escape_markdown, row) for row in (self.heading, *self.lines)]
        return markdown_rows(list(first), rest, words=self.words)

    def latex(self) -> str:
        """The table in LaTeX, for the booktabs package."""

        def line(texts: Sequence[str]) -> str:
            return " & ".join(map(escaping.escape_latex, texts)) + r" \\" + "\n"

        columns = "l" * self.words + "r" * (len(self.heading) - self.words)
        return (
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(self.heading)}\\midrule\n"
            + "".join(map(line, self.lines))
            + "\\bottomrule\n\\end{tabular}\n"
        )


def markdown_rows(heading: Sequence[str], lines: Iterable[Iterable[str]], *, words: int = 1) -> str:
    """A table in Markdown, whose texts are Markdown already; so many columns at the left are words."""
    rule = ["---" if place < words else "---:" for place in range(len(heading))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *lines))
