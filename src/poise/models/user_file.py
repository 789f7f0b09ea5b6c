"""A user's own model, by the function that builds it."""

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from poise.checks import InputError
from poise.models.normalize import check_answers


def from_file(name: str, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """FILE.py:FUNCTION: what `FUNCTION(classes=, shape=)` in that file returns, in evaluation mode.

    The file is run as a Python module: name only code that you trust. The function returns an
    nn.Module from images in [0, 1] of that (channels, height, width) to logits, its weights in it or
    given as a file. Files beside it can be imported while it is read and while the function runs.

    Raises:
        InputError: no such file or function, or what it returns does not answer with logits.
    """
    path, _, function = name.rpartition(":")
    file = _file(name)
    key = hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"poise_user_{key}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path!r} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(file.parent))
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        build = getattr(module, function, None)
        if not callable(build):
            raise InputError(f"{path!r} has no function {function!r} (classes=, shape=) -> nn.Module")
        _check_takes(name, build)
        net = build(classes=classes, shape=shape)
    finally:
        sys.path[:] = before
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} must return an nn.Module, got {type(net).__name__}")
    return check_answers(name, net.eval(), classes, shape)


def _check_takes(name: str, build: Callable[..., object]) -> None:
    """Refuse a function that is not called with classes and shape."""
    try:
        takes = inspect.signature(build)
    except ValueError:  # of some that are written in C
        return
    try:
        takes.bind(classes=2, shape=(1, 1, 1))
    except TypeError as error:
        function = name.rpartition(":")[2]
        raise InputError(
            f"{name} takes {takes}, and is called with classes= and shape=: write "
            f"def {function}(*, classes, shape), shape being (channels, height, width)"
        ) from error


def is_code(name: str) -> bool:
    """Whether the name is FILE.py:FUNCTION, so that code of the user's stands behind it."""
    return ".py:" in name


def code_digest(name: str) -> str:
    """A SHA-256 of the code behind FILE.py:FUNCTION, 16 hexadecimal digits; none of it is run.

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
