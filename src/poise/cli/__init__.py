"""The command line: each command is a function, its flags the function's arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from poise.checks import InputError
from poise.cli.compare import compare
from poise.cli.evaluate import evaluate
from poise.cli.reproduce import reproduce
from poise.cli.show import show
from poise.cli.train import train
from poise.progress import bars


def demo(*, out: Path = Path("demo")) -> None:
    """Train, attack and report on embedded digits: the whole story in about a minute.

    Args:
        out: Folder for the runs and the report.
    """
    import torch

    from poise.recipes.demo import demo

    torch.set_num_threads(1)  # two threads on nets this small only wait for each other
    with bars() as progress:
        audits = demo(out, progress=progress)
    show(audits, out)


def report(
    runs: Positional[tuple[Path, ...]], *, out: Path = Path("report"), threshold: float = 0.5
) -> None:
    """Write one self-contained HTML page, with Markdown and LaTeX tables, of several audits.

    Args:
        runs: Run folders of `poise evaluate`.
        out: Folder to write into.
        threshold: Confidence under which an answer is referred to a person.
    """
    if not runs:
        raise InputError("name at least one run folder: poise report RUN...")
    show(runs, out, threshold=threshold)


def list_() -> None:
    """Print the attacks, defenses, models, data sets and metrics, each with its source."""
    from poise.recipes.catalogue import print_catalogue

    print_catalogue()


def download(data: Positional[str], *, root: Path = Path("data")) -> None:
    """Fetch a data set.

    Args:
        data: Data set, see `poise list`.
        root: Folder to put it in.
    """
    from poise import data as sets

    found = sets.load(data, split="train", root=root, download=True)
    print(f"{data}: {len(found)} training images under {root}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "evaluate": evaluate,
    "train": train,
    "compare": compare,
    "reproduce": reproduce,
    "report": report,
    "list": list_,
    "download": download,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what a person can mend is one line on stderr and exit status 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="poise",
            description="A classifier's confidence, measured under attack and trained to hold.",
            args=argv,
        )
    except InputError as error:
        print(f"poise: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("poise: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
