"""Pages: one HTML file without network or script, everything inside it; Markdown and LaTeX beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike

from poise import store
from poise.metrics.intervals import percent
from poise.report import drawings
from poise.report.escaping import escape_markdown, plain

ROOM = 3_800_000  # letters that pictures may take


def render(
    template: str,
    functions: Iterable[Callable[..., object]],
    *,
    package: str = "poise.report",
    **values: object,
) -> str:
    """The template of a package with these functions and values, each text of it escaped.

    As HTML where the template's name ends so, else as Markdown.
    """
    is_html = template.endswith("html")

    def written(value: object) -> object:
        if isinstance(value, Markup):
            return value
        return say(value).replace(" %", "\N{NO-BREAK SPACE}%") if is_html else escape_markdown(say(value))

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("poise.report")]),
        autoescape=template.endswith("html"),
        undefined=StrictUndefined,
        finalize=written,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {of.__name__: of for of in (percent, drawings.bar, *functions)}
    environment.globals["size"] = (drawings.WIDTH, drawings.HEIGHT)
    return environment.get_template(template).render(values)


def write_texts(texts: Mapping[str, str], out: str | Path, *, name: str) -> Path:
    """Write NAME.html and the other texts, by their endings, into the folder `out`; the page's path.

    Raises:
        InputError: a full disk.
    """
    folder = Path(out)
    with store.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            store.write_text(folder / f"{name}.{ending}", text)
    return folder / f"{name}.html"


def show_change(clean: ArrayLike, attacked: ArrayLike, *, room: int = ROOM) -> dict[str, object]:
    """An image as it is, as it was changed, and the change, as `uris` of so many letters in all.

    `exact` tells whether they have their own size, `largest` the largest change in words.
    """
    (first, exact), (second, _) = (drawings.picture(x, limit=room // 3) for x in (clean, attacked))
    change, largest = drawings.change(clean, attacked, limit=room // 3)
    return {"uris": (first, second, change), "exact": exact, "largest": level(largest)}


def level(eps: float) -> str:
    """A budget in grey levels of 255."""
    return f"{255 * eps:.3g}"


def say(value: object) -> str:
    """What is shown of a value: on one line, a list's or mapping's items one after another."""
    if isinstance(value, Mapping):
        value = [f"{key} {say(of)}" for key, of in value.items()]
    return plain(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
