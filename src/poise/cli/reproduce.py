"""`poise reproduce`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from poise.checks import InputError, check_count
from poise.cli.parsing import check_asked, check_out
from poise.naming import known_name
from poise.progress import bars

if TYPE_CHECKING:
    from poise.paper.looks import Job
    from poise.paper.nets import Place


def reproduce(
    target: Positional[Annotated[str, arg(metavar="TARGET")]],
    *,
    scale: Literal["tiny", "cpu", "gpu", "full"] = "cpu",
    reading: Literal["ours", "paper", "cited"] = "ours",
    out: Path = Path("runs/paper"),
    results: Path | None = None,
    root: Path = Path("data"),
    seeds: int | None = None,
    model: tuple[str, ...] = (),
    weights: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    jobs: str = "0/1",
    threads: int | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> None:
    """Run a table or figure of the paper and put its numbers beside ours; the same command resumes.

    Args:
        target: table1 ... table4, tableS1 ... tableS3, figure1, figure2, figureS1, figureS2, claims or all.
        scale: full has the paper's own sizes; gpu too, but of CIFAR-10 only ResNet-18, for 25 epochs, one
            seed; cpu is what two cores do; tiny what a test does.
        reading: How the paper is read where it is silent: see docs/reproduction.md.
        out: Folder of the runs; what is there is not run again.
        results: Folder of the pages; OUT/results by default.
        root: Folder of downloaded data sets.
        seeds: Nets trained a setting.
        model: Another model for one of the paper's, as NAME=MODEL, e.g. ResNet-50=timm/resnet50.
        weights: Its weights, as NAME=FILE, NAME being the paper's.
        data: Other data for one of the paper's sets, as NAME=DATA, e.g. CIFAR-10=npz:cifar10.npz.
        jobs: Run only every n-th net's jobs, as i/n with i from 0: for several machines with one OUT. Pages
            are written of what is there.
        threads: Threads of arithmetic; by default what suits each net, or OMP_NUM_THREADS.
        workers: Processes that share the nets; by default as many as the cores serve, one with a GPU.
        dry_run: Print what would be run and about how long it takes.
    """
    from poise.paper import book, suites
    from poise.paper.jobs import distinct, run, share
    from poise.paper.nets import Place
    from poise.paper.readings import READING_OF
    from poise.paper.workers import run_shares, workers_for
    from poise.resources import using

    check_asked(out, seeds=seeds, threads=threads)
    if workers is not None:
        check_count("workers", workers, 1)
        if workers > 1 and jobs != "0/1":
            raise InputError("--workers share all jobs out by themselves: take them or --jobs, not both")
    if results is not None:
        check_out(results)
    name = known_name(book.TARGETS, target, "target")
    plain, read = suites.suite_named(scale), READING_OF[reading]
    chosen = plain.told(
        seeds=seeds,
        model=_pairs("model", model),
        weights=_pairs("weights", weights),
        data=_pairs("data", data),
        used=[job.net.setting for job in book.jobs_of(name, plain, read)],
    )
    place = Place(out, root, chosen.held)
    todo = share(distinct(book.jobs_of(name, chosen, read)), *_share(jobs))
    if dry_run:
        _show_plan(todo, place)
        return
    if workers is None:
        workers = workers_for(todo, place, threads=threads) if jobs == "0/1" else 1
    with using(threads), bars() as progress:
        if workers > 1:
            own = (("out", out), ("root", root), ("seeds", seeds), ("threads", threads))
            words = [target, "--scale", scale, "--reading", reading]
            words += [f"--{flag}={value}" for flag, value in own if value is not None]
            for flag, texts in (("model", model), ("weights", weights), ("data", data)):
                words += [f"--{flag}", *texts] if texts else []
            run_shares(words, todo, place, workers=workers, progress=progress)
        failed = run(todo, place, progress=progress)  # what is left, and why
    if failed and name not in ("claims", "all"):
        raise InputError("; ".join(failed))
    pages = book.Book(
        suite=chosen,
        reading=read,
        place=place,
        folder=results or out / "results",
        command=_command(name, scale, reading, seeds, model=model, weights=weights, data=data),
    )
    for page in book.write(name, pages):
        print(page)
    for reason in failed:
        print(f"not run: {reason}")


def _command(target: str, scale: str, reading: str, seeds: int | None, **named: tuple[str, ...]) -> str:
    """The command with what changes numbers, and without the folders of this machine."""
    words = ["poise", "reproduce", target, "--scale", scale]
    words += ["--reading", reading] if reading != "ours" else []
    words += ["--seeds", str(seeds)] if seeds is not None else []
    for flag, texts in named.items():
        pairs = _pairs(flag, texts).items()
        shown = [f"{name}={value if flag == 'model' else _plain(value)}" for name, value in pairs]
        words += [f"--{flag}", *shown] if shown else []
    return shlex.join(words)


def _plain(value: str) -> str:
    """A file's name without its folder, with the kind of data before it if there is one.

    >>> _plain("npz:there/cifar10.npz"), _plain("here/lite0.pt"), _plain("hf:owner/name")
    ('npz:cifar10.npz', 'lite0.pt', 'hf:owner/name')
    """
    kind, colon, path = value.rpartition(":")
    return value if kind == "hf" else f"{kind}{colon}{Path(path).name}"


def _show_plan(todo: Sequence[Job], place: Place) -> None:
    """Print the plan, a line a job, and the sum."""
    from poise.auditing.timing import duration
    from poise.cli.show import show_table
    from poise.paper.cost import plan
    from poise.report.tables import Table

    costs = plan(todo, place)
    known = sum(cost.seconds for cost in costs if cost.seconds is not None)
    lines = [
        (
            cost.job,
            cost.state,
            "-" if cost.forwards is None else f"{cost.forwards:,}",
            "-" if cost.seconds is None else duration(cost.seconds),
        )
        for cost in costs
    ]
    show_table(Table(("job", "state", "images sent through", "about"), lines))
    print(f"{len(costs)} jobs, about {duration(known)} on this device, where the time is known")


def _pairs(what: str, texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"--{what} takes NAME=VALUE, NAME being the paper's, got {text!r}")
        if found.setdefault(name, value) != value:
            raise InputError(f"--{what} names {name} twice, as {found[name]!r} and as {value!r}: which?")
    return found


def _share(text: str) -> tuple[int, int]:
    """i/n with 0 <= i < n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--jobs takes i/n with i from 0 to n - 1, e.g. 0/4, got {text!r}")
    return int(part), int(parts)
