"""Diagnostics of judged records: attacks that got nowhere, and black-box ones that got further."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from poise.attacks import Attack, aim_of
from poise.checks import InputError, check_number
from poise.diagnostics.finding import LEAST, Finding, above_least, of_images
from poise.diagnostics.heading import ball, gradient_free, heading, room
from poise.records import Records
from poise.shapes import Mask, PerSample

STIRRED = 1e-3  # a relative change of 1 − p_y beyond rounding
NOTHING = 1e-9  # a relative difference from 1 / classes that is rounding
AHEAD = 0.05  # by so much a black-box attack has to reach further, in confidence


def record_findings(
    records: Mapping[str, Records], attacks: Mapping[str, Attack], *, least: float = LEAST
) -> tuple[Finding, ...]:
    """Which attacks lost the label or got nowhere, and which black-box ones went further.

    Read from judged records alone. Misclassification attacks are left out, and random targets,
    which are not in the records, count as reached. A point that lost the label is no progress. A
    black-box attack is held, image by image, against the best of the gradient attacks that go the
    same way in the same ball and kept the label; it has to be ahead by more than .05.

    Args:
        records: of the same images, by the attacks' names.
        attacks: by name; those without records are ignored.
        least: the share of images from which on there is a finding.

    Raises:
        InputError: records without an attack, or of different images.
    """
    check_number("least", least, 0, 1, hint="it is a share of images")
    _check_same_images(records, attacks)
    headings = {name: heading(attacks[name], seen.clean, seen.correct) for name, seen in records.items()}
    ways = {name: wanted for name, wanted in headings.items() if wanted is not None}
    found: list[Finding] = []
    for name, wanted in ways.items():
        found += _progress(name, records[name], wanted)
    for name, wanted in ways.items():
        peers = [
            torch.where(
                (ways[other] == wanted) & records[other].kept, _gain(records[other], wanted), -torch.inf
            )
            for other in ways
            if _comparable(attacks[name], attacks[other])
        ]
        if peers:
            found.append(_ahead(name, _gain(records[name], wanted), torch.stack(peers).amax(dim=0)))
    found += [_vacuous(seen) for seen in [*records.values()][:1] if seen.certified]
    return above_least(found, least)


def _vacuous(seen: Records) -> Finding:
    assert seen.lower is not None
    return of_images(
        "vacuous",
        "",
        seen.lower <= (1 + NOTHING) / seen.clean.shape[1],
        "of the images have a certified confidence of one over the number of classes, which holds for "
        "every model: the certificate says nothing about them",
        "Take a smaller eps, crown instead of ibp, or a model trained to be certified (--defense ibp).",
    )


def _progress(name: str, seen: Records, wanted: PerSample) -> list[Finding]:
    able = seen.kept & ~wanted.isnan() & room(seen.clean, wanted)
    return [
        of_images(
            "lost-label",
            name,
            ~seen.kept,
            "of the images have another label after the attack, and the confidence is that label's",
            "Take keep='best' or an attack that keeps the label, or read the images that kept it only.",
        ),
        of_images(
            "never-improved",
            name,
            able & ~_stir(seen, wanted),
            "of the images keep their label and are no nearer to what the attack wants than before",
            "Run auto and a black-box attack, or shorten the first step: where one of them gets further, "
            "this attack has failed, and the confidence is not robust.",
        ),
    ]


def _ahead(name: str, gain: PerSample, best: PerSample) -> Finding:
    compared = best.isfinite()
    mean = float((gain - best)[compared].mean()) if compared.any() else 0.0
    return of_images(
        "black-box-ahead",
        name,
        compared & (gain - best > AHEAD),
        "of the images are moved further by this black-box attack than by every gradient attack of the "
        f"same aim and budget (by {mean:+.3f} in confidence on average over the images compared)",
        "Believe the black-box attack; look for rounding, clipping or saturation inside the model, and "
        "attack a smooth stand-in of it, or give the gradient attacks more steps.",
    )


def _comparable(attack: Attack, other: Attack) -> bool:
    """Whether the first is black-box, the second not, in one ball; who aims at a target stops there."""
    aimed = aim_of(other).wants == "target"
    return gradient_free(attack) and not gradient_free(other) and not aimed and ball(attack) == ball(other)


def _stir(records: Records, wanted: PerSample) -> Mask:
    """Whether p_y moved as wanted, seen in 1 − p_y, which does not round to 0."""
    prediction = records.clean.argmax(dim=1)[:, None]
    before, after = (p.scatter(1, prediction, 0).sum(dim=1) for p in (records.clean, records.attacked))
    fell, rose = after > before * (1 + STIRRED), after < before * (1 - STIRRED)
    return torch.where(wanted > 0, rose, torch.where(wanted < 0, fell, False))


def _gain(records: Records, wanted: PerSample) -> PerSample:
    """How far p_y went the wanted way, 0 where it did not or the label is lost."""
    moved = wanted * (records.attacked.amax(dim=1) - records.clean.amax(dim=1))
    return moved.where(records.kept, 0).clamp_min(0)


def _check_same_images(records: Mapping[str, Records], attacks: Mapping[str, Attack]) -> None:
    first = next(iter(records.values()), None)
    for name, seen in records.items():
        if name not in attacks:
            raise InputError(f"there are records of {name!r}, and no attack of that name: give it too")
        if first is not None and not torch.equal(first.y, seen.y):
            raise InputError(
                f"the records of {name!r} are of other images than those of {next(iter(records))!r}: "
                "evaluate all attacks on the same data"
            )
