"""Names as other people wrote them, made fit for a line, Markdown, LaTeX and figures."""

from __future__ import annotations

import re

from poise.naming import plain

WIDTH = 80  # letters that tables show of a name
_MARKS = re.compile(
    r"""[\\`*|~${}]          # wherever they are
    | <(?=\S) | &(?=[\#\w]) | \](?=[(\[:])  # where they would begin something, or end it
    | (?<![^\W_])_ | _(?![^\W_])  # not within a word
    """,
    re.VERBOSE,
)
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # \\ before it would take it for its own argument, and * likewise
    "]": "{]}",
    "*": "{*}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    **{letter: f"\\{letter}" for letter in "{}$&%#_"},
}


def escape_markdown(text: str) -> str:
    """The text as Markdown that shows it letter by letter, in a table's cell or amid a line.

    Entities, since not every dialect takes a backslash before every letter.

    >>> escape_markdown("a|b <i> c_d _e_"), escape_markdown("[0, 1] < 2")
    ('a&#124;b &#60;i> c_d &#95;e&#95;', '[0, 1] < 2')
    """
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", plain(text))


def code(text: str) -> str:
    """The text as a code span of Markdown, whatever backticks it holds.

    >>> code("a"), code("`a` b")
    ('`a`', '`` `a` b ``')
    """
    shown = plain(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def escape_latex(text: str) -> str:
    r"""The text as LaTeX that shows it letter by letter.

    >>> escape_latex(r"\input{a_b} 5 %")
    '\\textbackslash{}input\\{a\\_b\\} 5 \\%'
    """
    return "".join(_TEX.get(letter, letter) for letter in plain(text)).replace("--", "-{}-")


def label(text: str, *, width: int = 32) -> str:
    r"""The text as matplotlib shows it letter by letter: no formula, and in legends too.

    >>> print(label("$x$"))
    \$x\$
    """
    shown = plain(text, width=width).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # what begins with _ is left out of legends


__all__ = ["WIDTH", "code", "escape_latex", "escape_markdown", "label", "plain"]
