"""`poise check`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from poise.checks import InputError


def check(
    part: Positional[Annotated[str, arg(metavar="FILE.py:NAME")]],
    *,
    kind: Literal["attacks", "defenses", "models", "data"] | None = None,
    option: tuple[str, ...] = (),
    shape: tuple[int, int, int] = (3, 8, 8),
    classes: int = 5,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Try whether an attack, a defense, a model or data of your own keeps what poise relies on.

    It is run, on a few images; the exit status is 0 where every law holds.

    Args:
        part: FILE.py:NAME, or a name of `poise list`.
        kind: What it is; by default what it looks like.
        option: Options of an attack or a defense, NAME=VALUE.
        shape: Channels, height and width of the images that it is tried on.
        classes: How many a model is to tell apart.
        json_: Print JSON for other programs.
    """
    from poise import attacks, defenses
    from poise.contracts import check_part, kind_of
    from poise.naming import named_options

    kind = kind or kind_of(part)
    makers = {"attacks": attacks.factory, "defenses": defenses.factory}
    if option and kind not in makers:
        raise InputError(f"--option is for attacks and defenses, and {part!r} is of {kind}: leave it out")
    options = named_options(makers[kind](part), option) if kind in makers else {}
    laws = check_part(part, kind, options=options, shape=shape, classes=classes)
    failed = sum(not law.holds for law in laws)
    if json_:
        found = [{"owed": law.owed, "holds": law.holds, "seen": law.seen} for law in laws]
        print(json.dumps({"part": part, "kind": kind, "laws": found}, indent=2, ensure_ascii=False))
    else:
        for law in laws:
            print(f"{'holds' if law.holds else 'FAILS'}  {law.owed}{law.seen and f': {law.seen}'}")
    if failed:
        raise InputError(f"{part} does not keep {failed} of {len(laws)} laws for {kind}")
