"""From words on the command line to a command that is ready to run; what is wrong is one line."""

from __future__ import annotations

import difflib
import functools
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from poise.checks import InputError, check_count
from poise.naming import number, spell

Commands: TypeAlias = Mapping[str, Callable[..., None]]
HOME = re.compile(r"^((?:-[^=]*=)?(?:[\w.-]+[=:]|onnx/|hf/)*)(~[^/]*)(?=/|$)")  # where a path may begin


def parse(commands: Commands, words: Sequence[str], *, description: str) -> Callable[[], None]:
    """The command with its arguments.

    Numbers are taken as people write them (8/255), `~` stands for the home folder wherever a path can
    begin.

    Raises:
        InputError: no such command or option, one that is missing, or a value that cannot be read.
        SystemExit: help was asked for.
    """
    words, said = [_at_home(word) for word in words], io.StringIO()
    brief = words[:1] in (["-h"], ["--help"])
    _check_known(commands, words)
    words = _gather(commands, words)
    try:
        with redirect_stderr(said):
            ready: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: _defer(command, brief=brief) for name, command in commands.items()},
                prog="poise",
                description=description,
                args=words,
                registry=_read_values(),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_refusal(words[0], said.getvalue())) from None
    return ready


def completion_script(commands: Commands, shell: str) -> str:
    """What a shell reads to complete commands, options and their choices."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        file = Path(folder) / shell
        with suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(
                {name: _defer(command) for name, command in commands.items()},
                prog="poise",
                args=["--tyro-write-completion", shell, str(file)],
                registry=_read_values(),
            )
        return file.read_text(encoding="utf-8")


def check_asked(out: Path, *, seed: int = 0, **counts: int | None) -> None:
    """Refuse, before any work, an `out` that cannot be written and counts that cannot be.

    Raises:
        InputError: one of them.
    """
    check_out(out)
    check_count("seed", seed)
    for name, count in counts.items():
        if count is not None:
            check_count(name, count, 1)


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be made, written into or read again, without making it."""
    try:
        str(out.absolute()).encode()  # safetensors opens no other paths
        here = next(place for place in (out, *out.absolute().parents) if place.exists())
        able = here.is_dir() and os.access(here, os.W_OK | os.X_OK)
        reason = "is a file" if not here.is_dir() else "cannot be written into"
    except UnicodeEncodeError:
        here, able, reason = out.absolute(), False, "is not UTF-8"
    except OSError as error:
        here, able, reason = out, False, f"cannot be made ({error.strerror})"
    if not able:
        raise InputError(f"--out {str(out)!r}: {str(here)!r} {reason}: name another folder")


def _defer(command: Callable[..., None], *, brief: bool = False) -> Callable[..., Callable[[], None]]:
    """The command, to be run later; brief is the first line of its help alone."""

    @functools.wraps(command)
    def ready(*given: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *given, **named)

    if brief:
        ready.__doc__ = (command.__doc__ or "").partition("\n")[0]
    return ready


def _at_home(word: str) -> str:
    """The word with `~` as the home folder where a path begins with it.

    >>> home = str(Path.home())
    >>> [_at_home(w).replace(home, "HOME") for w in ("~/a", "--out=~/a", "npz:~/a", "N=npz:~/a", "a~/b")]
    ['HOME/a', '--out=HOME/a', 'npz:HOME/a', 'N=npz:HOME/a', 'a~/b']
    """
    return HOME.sub(lambda found: found[1] + str(_home(found[2])), word)


def _home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path!r} is nobody's home folder here: write the path out") from error


def _read_values() -> ConstructorRegistry:
    """How numbers and texts are read and shown, for every option of every command."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = {*(get_args(kind.type) or (kind.type,))} - {NoneType}
        if not kinds or not kinds <= {int, float}:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER",
            instance_from_str=lambda words: number(words[0], whole=kinds == {int}),
            is_instance=lambda value: value is None or isinstance(value, int | float),
            str_from_instance=lambda value: [spell(value) if isinstance(value, float) else str(value)],
        )

    @registry.primitive_rule
    def _(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if {*get_args(kind.type)} != {str, NoneType}:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: value is None or isinstance(value, str),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _check_known(commands: Commands, words: Sequence[str]) -> None:
    """Refuse a command or option that is not there, with the nearest that is."""
    if words and words[0] in ("-h", "--help"):
        return
    if not words or words[0] not in commands:
        said = f"there is no command {words[0]!r}" if words else "name a command"
        near = _nearest(words[0], commands) if words else ""
        raise InputError(f"{said}: {near}the commands are {', '.join(commands)} (poise --help)")
    known = ["--help", *_options(commands[words[0]])]
    for word in words[1:]:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            near = _nearest(name, known)
            raise InputError(f"poise {words[0]} has no option {name}: {near}see poise {words[0]} --help")


def _gather(commands: Commands, words: Sequence[str]) -> list[str]:
    """The words with what an option got each time it was given after its first name: the last would win.

    >>> def command(*, option: tuple[str, ...] = (), eps: float = 0.1) -> None: ...
    >>> _gather({"c": command}, ["c", "--option", "a=1", "--eps", "1", "--option=b=2"])
    ['c', '--option', 'a=1', 'b=2', '--eps', '1']
    """
    if words[0] not in commands:
        return list(words)
    several = _options(commands[words[0]])
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for word in words[1:]:
        if not word.startswith("--"):
            parts[name].append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in parts and not several.get(name):
            raise InputError(f"{name} is given twice: give it once")
        parts.setdefault(name, []).extend([value] if equals else [])
    return [words[0], *(w for name, got in parts.items() for w in [name] * bool(name) + got)]


def _nearest(word: str, known: Sequence[str] | Commands) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def _options(command: Callable[..., None]) -> dict[str, bool]:
    """The options of a command as they are written, and whether each takes several words."""
    found = {}
    for key, kind in _flags(get_type_hints(command, include_extras=True)):
        group, dot, last = key.replace("_", "-").rpartition(".")
        found[f"--{group}{dot}{last}"] = get_origin(kind) is tuple
        if kind is bool:
            found[f"--{group}{dot}no-{last}"] = False
    return found


def _flags(hints: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The flags made of arguments or fields by their types, a dataclass giving those of its own fields."""
    for name, hint in hints.items():
        kind, *beside = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        named = next((other.name for other in beside if getattr(other, "name", None) is not None), name)
        if not is_dataclass(kind):
            yield before + named, kind
            continue
        flat = named == ""
        yield from _flags(get_type_hints(kind, include_extras=True), before if flat else f"{before}{name}.")


def _refusal(command: str, said: str) -> str:
    """What the parser said in a box of its own, in one sentence."""
    lines = [line.strip(" │") for line in said.splitlines()[1:]]
    lines = [line for line in lines if line.strip("-─╰╯")]
    for start in ("For full helptext", "Argument helptext", "Perhaps you meant"):
        ends = [place for place, line in enumerate(lines) if line.startswith(start)]
        lines = lines[: ends[0]] if ends else lines
    what = " ".join(lines).removesuffix(".").replace("Error parsing ", "")
    if what.startswith("Missing from"):
        names = re.findall(r"(?m)^(?:--\S+ )?[A-Z]+$", "\n".join(lines))
        what = f"poise {command} needs {', '.join(names)}"
    return f"{what} (poise {command} --help)"
