"""Code that is not poise's: FILE.py:NAME, or what an installed package offers under a name.

It is run only where it is named, and told by a digest. A package offers its parts as entry points in the
groups `poise.attacks`, `poise.defenses`, `poise.models` and `poise.data`; poise's own names come first.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from inspect import Signature, signature
from pathlib import Path
from typing import Any, Literal, TypeAlias

from poise.checks import InputError

Kind: TypeAlias = Literal["attacks", "defenses", "models", "data"]


def is_own(name: object, kind: Kind, known: Iterable[str]) -> bool:
    """Whether the name is FILE.py:NAME, or one that a package offers and that is none of the known ones.

    Nothing of it is imported for the answer.
    """
    if not isinstance(name, str):
        return False
    return ".py:" in name or (_plain(name) not in map(_plain, known) and _offered(name, kind) is not None)


def offers(kind: Kind) -> list[EntryPoint]:
    """What the installed packages offer of that kind, by their metadata: none is imported."""
    return sorted(entry_points(group=f"poise.{kind}"), key=lambda entry: (entry.name, origin(entry)))


def origin(entry: EntryPoint) -> str:
    """The package that offers it, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


@contextmanager
def named_in(name: str, what: str, kind: Kind) -> Iterator[Any]:
    """What NAME is in FILE.py, which is run as a Python module, or in the package that offers it.

    Name only code that you trust. Files beside FILE.py can be imported while it is read and in the context.

    Raises:
        InputError: no such file, or nothing callable of that name in it; `what` says what it should be.
    """
    with beside(name):
        module, wanted, where = _module(name, kind)
        found = module
        for part in wanted.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise InputError(f"{where!r} has no {what.format(name=repr(wanted))}")
        yield found


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Files beside FILE.py can be imported."""
    before = list(sys.path)
    if ".py:" in name:
        sys.path.insert(0, str(_file(name).parent))
    try:
        yield
    finally:
        sys.path[:] = before


def code_hash(name: str, kind: Kind) -> str:
    """A SHA-256 of the code behind the name, 16 hexadecimal digits; none of it is run.

    Of the file, and of what it imports from its own folder, by whatever ways; of a package's part its
    version too.

    Raises:
        InputError: no such file.
    """
    entry = None if ".py:" in name else _offered(name, kind)
    first = _file(name) if entry is None else _file_of(entry)
    left, seen = [first] if first else [], dict[Path, bytes]()
    while left:
        file = left.pop()
        if file not in seen:
            seen[file] = file.read_bytes()
            left += _imported(seen[file], first.parent if first else file.parent)
    digest = hashlib.sha256(f"{origin(entry)} {entry.value} ".encode() if entry else b"")
    for file in sorted(seen):
        place = file.relative_to(first.parent) if first and file != first else "first"
        digest.update(f"{place} {len(seen[file])} ".encode() + seen[file])
    return digest.hexdigest()[:16]


def bare_name(name: str, kind: Kind) -> str:
    """FILE.py:NAME without folders; of a package's part the package, its version and the name."""
    if ".py:" in name:
        path, _, wanted = name.rpartition(":")
        return f"{Path(path).name}:{wanted}"
    entry = _offered(name, kind)
    return name if entry is None else f"{origin(entry)}:{entry.name}"


@dataclass(frozen=True)
class UserPart:
    """An attack or a defense that is not poise's; its digest makes changed code another part.

    What else the part has, such as its aim, its ball or its steps, is had through it.
    """

    name: str  # as `bare_name` has it
    code: str
    options: tuple[tuple[str, Any], ...]
    part: Any = field(repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "part":
            raise AttributeError(name)
        return getattr(self.part, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the part."""
        return self.part(*given, **named)


class UserFactory:
    """What makes the part of that name of its options; one that is a part itself takes none.

    Its code is run: name only code that you trust.

    Args:
        name: FILE.py:NAME, or what a package offers.
        kind: "attacks" or "defenses".
        check: refuses, given the part and the name, what is no such part.

    Raises:
        InputError: no such file or name, or, when it is called, a part that is refused.
    """

    def __init__(self, name: str, kind: Kind, *, check: Callable[[Any, str], None]) -> None:
        what = f"{kind.removesuffix('s')} {{name}}, nor a factory of one"
        with named_in(name, what, kind) as found:
            takes = signature(found).parameters
            made = not isinstance(found, type) and ("model" in takes or hasattr(found, "aim"))
        self.name, self.kind, self.found, self.made, self.check = name, kind, found, made, check
        self.__doc__ = found.__doc__
        self.__signature__ = Signature([] if made else list(takes.values()))

    def __call__(self, **options: Any) -> UserPart:
        """The part."""
        try:
            self.__signature__.bind(**options)
        except TypeError as error:
            raise InputError(f"{self.name} takes {self.__signature__}: {error}") from error
        with beside(self.name):
            part = self.found if self.made else self.found(**options)
        self.check(part, self.name)
        digest = code_hash(self.name, self.kind)
        return UserPart(bare_name(self.name, self.kind), digest, tuple(sorted(options.items())), part)


def _module(name: str, kind: Kind) -> tuple[Any, str, str]:
    """The module behind the name, now run; what is wanted in it; and where that is, for messages."""
    path, _, wanted = name.rpartition(":")
    if ".py:" not in name:
        entry = _offered(name, kind)
        if entry is None:
            raise InputError(f"no installed package offers {name!r} in the group poise.{kind}")
        try:
            return importlib.import_module(entry.module), entry.attr, origin(entry)
        except ImportError as error:
            raise InputError(f"{name!r} of {origin(entry)} cannot be imported: {error}") from error
    file = _file(name)
    key = hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"poise_user_{key}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path!r} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module, wanted, path


def _offered(name: str, kind: Kind) -> EntryPoint | None:
    """What a package offers under the name, hyphens, underscores and capitals being alike.

    Raises:
        InputError: several packages offer it.
    """
    if not name.replace("-", "_").isidentifier():  # a path, or PREFIX/NAME
        return None
    found = [entry for entry in offers(kind) if _plain(entry.name) == _plain(name)]
    if len(found) > 1:
        packages = " and ".join(origin(entry) for entry in found)
        raise InputError(f"{name!r} is offered by {packages}: uninstall one, or name FILE.py:NAME")
    return found[0] if found else None


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _file_of(entry: EntryPoint) -> Path | None:
    """The file of the module that holds the part; None where there is no Python file of it."""
    first, *rest = entry.module.split(".")
    spec = importlib.util.find_spec(first)  # of the outermost package, so that nothing is imported
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin)
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


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
