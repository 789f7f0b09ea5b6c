"""Labels: which of a model's classes each class of a data set is, by name where both have names."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from poise.checks import InputError, name_some

Given = Mapping[str, str | int]
SYNSET = re.compile(r"n\d{8}(?!\d)")  # WordNet's number, which ImageNet's folders are called by


class Labelled(Protocol):
    """A data set: what its labels stand for, and the same images by other labels."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


class Relabelled(Labelled, Protocol):
    """A data set that can be given other labels."""

    def relabelled(self: R, order: Sequence[int], classes: Sequence[str]) -> R:
        """Label i becomes order[i], of these classes."""


R = TypeVar("R", bound=Relabelled)
B = TypeVar("B")


def names_of(model: object) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of its logits, `model.class_names`; None not known."""
    names = getattr(model, "class_names", None)
    return tuple(map(str, names)) if names else None


def relabel(data: R, order: Sequence[int], names: Sequence[str] | None, *, outputs: int) -> R:
    """The data set with its i-th class at order[i]; a model without names gets the data's."""
    if names is None:
        known = {place: data.classes[label] for label, place in enumerate(order)}
        names = [known.get(place, str(place)) for place in range(outputs)]
    return data.relabelled(order, names)


def as_in(model: object, batches: B) -> B:
    """The batches with the model's labels, where they are a data set and the model's names are known."""
    names = names_of(model)
    if names is None or not hasattr(batches, "relabelled"):
        return batches
    data: Any = batches
    order = match(data.classes, names, outputs=len(names), what=data.name)
    found: B = data if order == tuple(range(len(names))) else data.relabelled(order, names)
    return found


def match(
    data: Sequence[str],
    model: Sequence[str] | None,
    *,
    outputs: int,
    given: Given | None = None,
    who: str = "the model",
    what: str = "the data",
) -> tuple[int, ...]:
    """For each class of the data, its place among the model's logits.

    By name, capitals, accents' spelling, spaces, hyphens and underscores being alike; each part of a
    name with commas counts. Labels stay as they are where no name is found elsewhere and one side has no
    names: none, 0, 1, 2 ..., or LABEL_0, LABEL_1 ...; or WordNet's numbers, by which ImageNet's
    folders are called. The data may lack classes that the model knows, not the other way round.

    Args:
        data: the names of the data's classes.
        model: those of the model's, None if not known.
        outputs: how many logits the model has.
        given: the user's word for some of the data's classes: a name of the model's, or a place.
        who: the model, in messages.
        what: the data, in messages.

    Raises:
        InputError: a class of the data has no match, or more than one.

    >>> match(["cat", "Polar Bear"], ["polar_bear", "cat", "dog"], outputs=3)
    (1, 0)
    >>> match(["yes", "no"], None, outputs=2), match(["sick"], None, outputs=2, given={"sick": 1})
    ((0, 1), (1,))
    """
    given = given or {}
    if unknown := [name for name in given if name not in data]:
        raise InputError(f"the class map names {name_some(unknown)}, and {what} has {name_some(data)}")
    told = {name: _place(place, model, outputs, who) for name, place in given.items()}
    rest = [name for name in data if name not in told]
    by_name = {} if model is None else _by_name(rest, model)
    lost = [name for name in rest if len(by_name.get(name, ())) != 1]
    if not lost and len({by_name[name] for name in rest}) == len(rest):
        return tuple(told[name] if name in told else by_name[name][0] for name in data)
    places = [by_name.get(name, ()) for name in data]
    nowhere_else = all(len(p) != 1 or p == (label,) for label, p in enumerate(places))
    if (
        not told
        and nowhere_else
        and len(data) == outputs
        and (model is None or _nameless(model) or _nameless(data))
    ):
        return tuple(range(outputs))
    raise _unlike(data, model, lost, outputs=outputs, who=who, what=what)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """DATA=MODEL texts, the last equals sign parting them, as a map for `match`.

    >>> pairs(["a_healthy=normal", "tench=0"])
    {'a_healthy': 'normal', 'tench': '0'}
    """
    found = {}
    for text in texts:
        name, equals, place = text.rpartition("=")
        if not equals or not name or not place:
            raise InputError(
                f"--class-map takes DATA=MODEL, a class of the data and the model's name or number of it "
                f"(from 0), got {text!r}"
            )
        found[name] = place
    return found


def _by_name(data: Sequence[str], model: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The places of the model's classes that each name stands for, by the closest kind of match there is.

    Letter by letter before alike, whole names before parts.
    """
    kinds: list[tuple[dict[str, list[int]], Callable[[str], str]]] = []
    for spelled in (str, _plain):
        for parts in (lambda name: [name], _parts):
            places: dict[str, list[int]] = {}
            for place, name in enumerate(model):
                for part in dict.fromkeys(map(spelled, parts(name))):
                    places.setdefault(part, []).append(place)
            kinds.append((places, spelled))
    found = {}
    for name in data:
        tries = (places.get(spelled(part)) for places, spelled in kinds for part in _parts(name))
        found[name] = tuple(next((places for places in tries if places), ()))
    return found


def _parts(name: str) -> list[str]:
    """What a class may be called: its whole name first, what follows a synset's number, parts with commas.

    >>> _parts("n01440764 tench, Tinca tinca")
    ['n01440764 tench, Tinca tinca', 'n01440764', 'tench, Tinca tinca', 'tench', 'Tinca tinca']
    """
    synset = SYNSET.match(name)
    rest = [synset[0], name[synset.end() :]] if synset else []
    parts = [name, *rest, *(rest[-1] if rest else name).split(",")]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return " ".join(re.split(r"[\s_-]+", text)).strip()


def _nameless(names: Sequence[str]) -> bool:
    """Whether names say no more than their places, or are WordNet's numbers."""
    places = all(_plain(name) in (str(i), f"label {i}") for i, name in enumerate(names))
    return places or all(SYNSET.match(name) for name in names)


def _place(told: str | int, model: Sequence[str] | None, outputs: int, who: str) -> int:
    """The place of a class that the user has named, by the model's name of it or by its number."""
    if isinstance(told, str) and model is not None:
        places = _by_name([told], model)[told]
        if len(places) == 1:
            return places[0]
    if (isinstance(told, int) or told.isdecimal()) and 0 <= int(told) < outputs:
        return int(told)
    raise InputError(
        f"the class map names {told!r}, and {who} has {_classes_of(model, outputs)}, which go by their "
        f"names or by 0 ... {outputs - 1}"
    )


def _unlike(
    data: Sequence[str],
    model: Sequence[str] | None,
    lost: Sequence[str],
    *,
    outputs: int,
    who: str,
    what: str,
) -> InputError:
    """The refusal, with both lists and the way out."""
    if model is None:
        why, first = "by their number alone", data[0]
    elif lost:
        why, first = f"by name: {name_some(lost)} {'has' if len(lost) == 1 else 'have'} no match", lost[0]
    else:
        why, first = "by name: two of the data's are one of the model's", data[0]
    flag = f"--class-map {shlex.quote(first + '=NAME')}"
    return InputError(
        f"{what} has {len(data)} classes ({name_some(data)}), {who} has {_classes_of(model, outputs)}, and "
        f"they cannot be matched {why}: say which is which, {flag} ..., NAME being the model's or its "
        "number from 0 (class_map={...} in Python), or leave classes out (--read.drop)"
    )


def _classes_of(model: Sequence[str] | None, outputs: int) -> str:
    return f"{outputs} classes " + ("without names" if model is None else f"({name_some(model)})")
