"""The command line: each command is a function, its flags the function's arguments."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

from tyro.conf import Positional, arg

from poise import __version__
from poise.checks import InputError, RefusedError, check_number
from poise.cli.audit import audit
from poise.cli.check import check
from poise.cli.evaluate import evaluate
from poise.cli.parsing import check_out, completion_script, parse
from poise.cli.reproduce import reproduce
from poise.cli.show import show
from poise.cli.train import train
from poise.naming import plain
from poise.progress import bars


def demo(*, out: Path = Path("demo")) -> None:
    """Train two nets on embedded digits and audit both: the whole story in about a minute.

    Args:
        out: Folder for the runs and the audit with its page.
    """
    check_out(out)
    from poise.auditing.demo import demo

    with bars() as progress:
        found = demo(out, progress=progress)
    print(found.verdict)
    print(f"page: {out / 'audit' / 'audit.html'}")


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
    check_number("threshold", threshold, 0, 1)
    check_out(out)
    show(runs, out, threshold=threshold)


def list_(*, json_: Annotated[bool, arg(name="json")] = False) -> None:
    """Print the attacks, defenses, models, data sets and metrics, each with its source.

    Args:
        json_: Print JSON for other programs.
    """
    from poise.cli.catalogue import catalogue, print_catalogue

    if json_:
        print(json.dumps([entry._asdict() for entry in catalogue()], indent=2, ensure_ascii=False))
    else:
        print_catalogue()


def export(
    run: Positional[Path],
    *,
    out: Path,
    code: str | None = None,
) -> None:
    """Write a trained model for other programs, and judge the file by what it answers.

    Args:
        run: Run folder of `poise train`.
        out: FILE.safetensors, as timm and torchvision load it; FILE.onnx, which takes images in [0, 1]; of
            an hf/ model also a folder as Hugging Face's.
        code: Model of the run folder once more, where it is FILE.py:FUNCTION or a download.
    """
    check_out(out.parent)
    from poise import training

    off = training.export(run, out, code=code)
    print(f"exported: {out} (read again, its logits differ by at most {off:.2g})")


def completion(shell: Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print what a shell reads to complete commands and options.

    In bash: eval "$(poise completion bash)"; in fish: poise completion fish | source. For zsh, write it
    to a file _poise in a folder of $fpath.

    Args:
        shell: Which.
    """
    print(completion_script(COMMANDS, shell))


def download(data: Positional[Annotated[str, arg(metavar="DATA")]], *, root: Path = Path("data")) -> None:
    """Fetch a data set.

    Args:
        data: Data set, see `poise list`.
        root: Folder to put it in.
    """
    from poise import data as sets

    check_out(root)
    try:
        with redirect_stdout(io.StringIO()):  # what its packages say of every address they try
            found = sets.load(data, split="train", root=root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{data} could not be fetched: {error}") from error
    print(f"{data}: {len(found)} training images under {root}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "audit": audit,
    "evaluate": evaluate,
    "train": train,
    "reproduce": reproduce,
    "report": report,
    "list": list_,
    "check": check,
    "download": download,
    "export": export,
    "completion": completion,
}


DESCRIPTION = "A classifier's confidence, measured under attack and trained to hold."
GOES_ON = "the same command goes on from here"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what a person can mend is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's letters cannot spell
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable():
            if words == ["--version"]:
                print(f"poise {__version__}")
            else:
                parse(COMMANDS, words, description=DESCRIPTION)()
            sys.stdout.flush()
    except RefusedError:  # the first of several processes has said it
        raise SystemExit(0) from None
    except InputError as error:
        _show_cause(error.__cause__)
        _leave(2, str(error))
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT, f"stopped; {GOES_ON}")
    except Terminated:
        _leave(128 + signal.SIGTERM, f"stopped by SIGTERM; {GOES_ON}")
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _leave(2, f"memory ran out ({error}): take a smaller --batch-size or smaller images; {GOES_ON}")


def _show_cause(cause: BaseException | None) -> None:
    """Print where an error began, if that was in code that is neither poise's nor installed."""
    installed = [str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))]
    frames = traceback.extract_tb(None if cause is None else cause.__traceback__)
    if any(Path(f.filename).is_file() and not f.filename.startswith(tuple(installed)) for f in frames):
        traceback.print_exception(cause)


class Terminated(BaseException):
    """SIGTERM came; files half written are taken away on the way out."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception of this process; its children end at once."""
    if threading.current_thread() is not threading.main_thread():  # Python allows it there alone
        yield
        return
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or the CPU; torch is not imported for it."""
    said = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _leave(code: int, text: str) -> NoReturn:
    """End with that status and one line, of several processes that got the same signal the first one's."""
    if code <= 128 or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"poise: {plain(' '.join(text.split()))}", file=sys.stderr)
    raise SystemExit(code) from None
