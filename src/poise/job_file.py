"""job.json, read strictly: what it may say of a run, each field with the kind of value that it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeAlias, get_args

from poise.checks import InputError
from poise.train_job import ALWAYS_TOLD, hints

LARGEST = 2**26  # bytes of JSON: a thousand times what a run of ImageNet leaves
SIDE = 8192  # channels or pixels a side
MANY = 2**53  # whole numbers that every reader of JSON keeps

Kind: TypeAlias = tuple[str, Callable[[Any], bool]]  # in words, and whether a value is of it


def or_none(kind: Kind) -> Kind:
    """The kind, or nothing."""
    return f"{kind[0]} or null", lambda v: v is None or kind[1](v)


def _is_text(v: Any) -> bool:
    return isinstance(v, str)


def _is_number(v: Any) -> bool:
    return type(v) in (int, float) and abs(v) <= MANY


def _are_texts(v: Any) -> bool:
    return isinstance(v, list) and all(map(_is_text, v))


def _are_names(v: Any) -> bool:
    return _are_texts(v) and len(v) == len({*v}) > 0


def _is_shape(v: Any) -> bool:
    return isinstance(v, list) and len(v) == 3 and all(type(n) is int and 1 <= n <= SIDE for n in v)


def _are_versions(v: Any) -> bool:
    return isinstance(v, dict) and all(n is None or _is_text(n) for n in v.values())


def _are_findings(v: Any) -> bool:
    texts = ("kind", "attack", "seen", "advice")
    return isinstance(v, list) and all(
        isinstance(f, dict) and all(map(_is_text, map(f.get, texts))) and _is_number(f.get("share"))
        for f in v
    )


def _are_circumstances(v: Any) -> bool:
    return isinstance(v, list) and all(
        isinstance(c, dict) and _are_versions(c.get("versions")) and _is_text(c.get("device")) for c in v
    )


TEXT: Kind = ("text", _is_text)
TEXTS: Kind = ("a list of texts", _are_texts)
NUMBER: Kind = ("a number", _is_number)
COUNT: Kind = ("a whole number from 0 on", lambda v: type(v) is int and 0 <= v <= MANY)
FLAG: Kind = ("true or false", lambda v: type(v) is bool)
NAMES: Kind = ("a list of names, none twice", _are_names)
SHAPE: Kind = (f"three whole numbers in [1, {SIDE}]", _is_shape)
VERSIONS: Kind = ("versions by package", _are_versions)
SOURCE: Kind = ("what was read", lambda v: isinstance(v, dict) and isinstance(v.get("read", {}), dict))
FINDINGS: Kind = ("a list of findings", _are_findings)

ALWAYS: Mapping[str, Kind] = {  # beside the configuration
    "versions": VERSIONS,
    "commit": or_none(TEXT),
    "device": TEXT,
    "threads": COUNT,
    "started": TEXT,
}
LATER: Mapping[str, Kind] = {  # noted as the run goes on
    "seconds": ("a number from 0 on", lambda v: _is_number(v) and v >= 0),
    "notes": TEXTS,
    "devices": COUNT,
    "files": ("digests by file", lambda v: isinstance(v, dict) and all(map(_is_text, v.values()))),
    "findings": FINDINGS,
    "diagnosed": TEXTS,
    "earlier": ("a list of circumstances", _are_circumstances),
    "collapsed": FLAG,
    "selected_epoch": COUNT,
    "k_nll": or_none(NUMBER),
    "source": SOURCE,
}


def _kind(hint: Any) -> Kind:
    """What job.json holds of an option of that type."""
    kind, *more = get_args(hint) or (hint,)
    if NoneType in more:
        return or_none(_kind(kind))
    return {int: COUNT, float: NUMBER, bool: FLAG}.get(kind, TEXT)


_DATA: Mapping[str, Kind] = {
    "data": TEXT,
    "images": COUNT,
    "fingerprint": TEXT,
    "classes": NAMES,
    "model": TEXT,
    "seed": COUNT,
}
OPTIONS = {name: _kind(hint) for name, hint in hints().items()}
JOBS: Mapping[str, Mapping[str, Kind]] = {  # by the job's kind
    "train": {
        **_DATA,
        "shape": SHAPE,
        "defense_value": TEXT,
        **{name: OPTIONS[name] for name in ALWAYS_TOLD},
    },
    "audit": {**_DATA, "defense": or_none(TEXT), "weights": TEXT},
    "attack": {"attack": TEXT, "of": TEXT},
}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, read strictly.

    Raises:
        InputError: the file cannot be read, is no JSON object, names something twice, or holds a number
            that is none (NaN, Infinity, 1e999).
    """
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        content = json.loads(
            file.read_bytes().decode("utf-8"),
            object_pairs_hook=_once,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        refuse_damaged(file, str(error), error)
    if not isinstance(content, dict):
        refuse_damaged(file, "it holds no object")
    return content


def check_run(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse a run's job.json without one of its fields, or with one that is of another kind.

    Raises:
        InputError: the file and the field.
    """
    if not isinstance(content.get("job"), dict):
        refuse_damaged(file, "it has no job")
    later = {name: kind for name, kind in LATER.items() if name in content}
    check_fields(file, content, {"key": TEXT, **ALWAYS, **later})
    if fault := fault_in(content["job"]):
        refuse_damaged(file, f"job: {fault}")


def fault_in(job: Mapping[str, Any]) -> str:
    """What is not as a configuration of its kind has it; empty where all is well."""
    kind = job.get("kind")
    fields = JOBS.get(kind, {}) if isinstance(kind, str) else {}
    options = {name: OPTIONS[name] for name in job if name in OPTIONS} if kind == "train" else {}
    return _fault(job, {**fields, **options})


def check_fields(file: Path, content: Mapping[str, Any], fields: Mapping[str, Kind]) -> None:
    """Refuse content without one of these fields, or with one that is of another kind.

    Raises:
        InputError: the file and the field.
    """
    if fault := _fault(content, fields):
        refuse_damaged(file, fault)


def _fault(content: Mapping[str, Any], fields: Mapping[str, Kind]) -> str:
    for name, (words, holds) in fields.items():
        if name not in content:
            return f"{name} is missing"
        if not holds(content[name]):
            return f"{name} must be {words}, got {_short(content[name])}"
    return ""


def refuse_damaged(file: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    """Refuse the file.

    Raises:
        InputError: always.
    """
    way_out = f"remove {str(file.parent)!r}, and the same command makes it anew"
    raise InputError(f"{str(file)!r} is damaged ({what}): {way_out}") from cause


def _short(value: object) -> str:
    try:
        text = ascii(value)
    except RecursionError:
        return "something deep"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names something twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number
