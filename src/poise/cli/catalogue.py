"""What there is to choose from, and who offers it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, get_args

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from poise import user_code
from poise.attacks import ATTACKS, READINGS
from poise.data import DATASETS, PREFIXES
from poise.defenses import DEFENSES
from poise.defenses import READINGS as DEFENSE_READINGS
from poise.metrics import METRICS
from poise.models import MODELS, SOURCES

TABLES: Mapping[str, Mapping[str, Callable[..., object]]] = {
    "attacks": ATTACKS,
    "other readings of attacks (rescaled and cited leave their ball)": READINGS,
    "defenses": DEFENSES,
    "published readings of defenses": DEFENSE_READINGS,
    "models": MODELS,
    "other models, by PREFIX/NAME": SOURCES,
    "data": DATASETS,
    "your own data, as PREFIX:...": PREFIXES,
    "metrics": METRICS,
}


class Entry(NamedTuple):
    """One name: its kind, what it is and its source, and who offers it."""

    kind: str
    name: str
    text: str
    origin: str


def catalogue() -> Iterator[Entry]:
    """Poise's own by the first line of each docstring; of packages what their metadata say, unimported."""
    for kind, table in TABLES.items():
        for name, entry in table.items():
            yield Entry(kind, name, first_line(entry), "poise")
    for kind in get_args(user_code.Kind):
        for offered in user_code.offers(kind):
            hidden = not user_code.is_own(offered.name, kind, TABLES[kind])
            told = f"{offered.value}{' (hidden by the name of poise)' if hidden else ''}"
            yield Entry(kind, offered.name, told, user_code.origin(offered))


def first_line(entry: Callable[..., object]) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def print_catalogue() -> None:
    """Print the catalogue, a table a kind; where only poise offers something, who does is not said."""
    console, entries = Console(), list(catalogue())
    for kind in TABLES:
        several = {entry.origin for entry in entries if entry.kind == kind} != {"poise"}
        table = Table(
            Column("name", overflow="fold"),
            "what it is",
            *["from"] * several,
            title=kind,
            title_justify="left",
            box=None,
        )
        for _, name, text, origin in (entry for entry in entries if entry.kind == kind):
            table.add_row(Text(name), Text(text), *[origin] * several)
        console.print(table)
        console.print()
