"""Doctests become blocks of code on the API's page: Markdown would take `>>>` for quotes."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Fences every paragraph of a docstring that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring before it is read."""
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(map(_fenced, obj.docstring.value.split("\n\n")))


def _fenced(paragraph: str) -> str:
    code = paragraph.strip().startswith(">>>")
    return f"```pycon\n{paragraph.strip()}\n```" if code else paragraph
