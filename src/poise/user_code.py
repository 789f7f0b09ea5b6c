"""Code of a user's own, named as FILE.py:NAME: run only where it is named, and told by a digest."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poise.checks import InputError


@contextmanager
def named_in(name: str, what: str) -> Iterator[Any]:
    """What NAME is in FILE.py, which is run as a Python module: name only code that you trust.

    Files beside it can be imported while it is read and in the context.

    Raises:
        InputError: no such file, or nothing callable of that name in it; `what` says what it should be.
    """
    path, _, wanted = name.rpartition(":")
    file = _file(name)
    key = hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"poise_user_{key}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path!r} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with beside(name):
        spec.loader.exec_module(module)
        found = getattr(module, wanted, None)
        if not callable(found):
            raise InputError(f"{path!r} has no {what.format(name=repr(wanted))}")
        yield found


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Files beside FILE.py can be imported."""
    before = list(sys.path)
    sys.path.insert(0, str(_file(name).parent))
    try:
        yield
    finally:
        sys.path[:] = before


def is_code(name: object) -> bool:
    """Whether the name is FILE.py:NAME, so that code of the user's stands behind it."""
    return isinstance(name, str) and ".py:" in name


def code_digest(name: str) -> str:
    """A SHA-256 of the code behind FILE.py:NAME, 16 hexadecimal digits; none of it is run.

    Of the file, and of what it imports from its own folder, by whatever ways.

    Raises:
        InputError: no such file.
    """
    first = _file(name)
    left, seen = [first], dict[Path, bytes]()
    while left:
        file = left.pop()
        if file not in seen:
            seen[file] = file.read_bytes()
            left += _imported(seen[file], first.parent)
    digest = hashlib.sha256()
    for file in sorted(seen):
        place = file.relative_to(first.parent) if file != first else "first"
        digest.update(f"{place} {len(seen[file])} ".encode() + seen[file])
    return digest.hexdigest()[:16]


def _imported(code: bytes, folder: Path) -> Iterator[Path]:
    """The files in the folder that the code imports; of a package all of them."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):  # running it will say so
        return
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for name in {name.partition(".")[0] for name in names} - {""}:
        if (folder / f"{name}.py").is_file():
            yield folder / f"{name}.py"
        yield from (folder / name).rglob("*.py")


def _file(name: str) -> Path:
    path = name.rpartition(":")[0]
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise InputError(f"no Python file at {path!r}")
    return file
