"""What there is to choose from."""

import inspect
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from poise.attacks import ATTACKS, READINGS
from poise.data import DATASETS, PREFIXES
from poise.defenses import DEFENSES
from poise.defenses import READINGS as DEFENSE_READINGS
from poise.metrics import METRICS
from poise.models import MODELS, SOURCES

TABLES = {
    "attacks": ATTACKS,
    "other readings of attacks (rescaled and cited leave their ball)": READINGS,
    "defenses": DEFENSES,
    "published readings of defenses": DEFENSE_READINGS,
    "models": MODELS,
    "other models, by PREFIX/NAME": SOURCES,
    "data sets": DATASETS,
    "your own data, as PREFIX:...": PREFIXES,
    "metrics": METRICS,
}


def catalogue() -> Iterator[tuple[str, str, str]]:
    """(kind, name, what it is and its source), from the first line of each docstring."""
    for kind, table in TABLES.items():
        for name, entry in table.items():
            yield kind, name, first_line(entry)


def first_line(entry: Callable[..., object]) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def print_catalogue() -> None:
    """Print the catalogue, a table a kind."""
    console = Console()
    for kind in TABLES:
        table = Table(
            Column("name", overflow="fold"), "what it is", title=kind, title_justify="left", box=None
        )
        for of, name, text in catalogue():
            if of == kind:
                table.add_row(Text(name), Text(text))
        console.print(table)
        console.print()
