"""Diagnostics: why a confidence attack may be weaker than it looks, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from poise.attacks import Attack
from poise.diagnostics.answers import answer_findings, scale_findings
from poise.diagnostics.finding import LEAST, Finding, above_least
from poise.diagnostics.heading import gradient_free, heading
from poise.diagnostics.judged import record_findings
from poise.diagnostics.model import model_findings
from poise.diagnostics.walks import attack_findings
from poise.records import Records
from poise.shapes import Images, Labels, Model

__all__ = [
    "Finding",
    "attack_findings",
    "diagnose",
    "gradient_free",
    "heading",
    "model_findings",
    "record_findings",
]


def diagnose(
    model: Model,
    attacks: Mapping[str, Attack],
    x: Images,
    y: Labels | None = None,
    *,
    records: Mapping[str, Records] | None = None,
    least: float = LEAST,
) -> tuple[Finding, ...]:
    """All findings: about the model, about each attack on the probe images, and from records.

    Args:
        model: images in [0, 1] -> logits, on the device of x.
        attacks: by name; each gradient attack runs once on the probe images.
        x: probe images (n, c, h, w), a few dozen; at least four for all checks of the model.
        y: true labels (n,), for the attacks that use them, and to see whether pixels of another scale
            are answered better.
        records: of attacks by the same names.
        least: the share of images from which on there is a finding.

    Raises:
        InputError: what an attack refuses, records without an attack or of different images.
    """
    found = model_findings(model, x, least=least)
    first = next(iter((records or {}).values()), None)
    answers = [] if y is None else scale_findings(model, x, y)
    answers += [] if first is None else answer_findings(first)
    found += above_least(answers, least)
    if any(finding.kind == "probabilities" for finding in found):
        # Attacks on logits refuse such a model; those made for probabilities are right to use it.
        meant = bool(attacks) and all(
            getattr(a, "outputs", "") == "probabilities" for a in attacks.values()
        )
        found = tuple(f for f in found if not (meant and f.kind == "probabilities"))
    else:
        for name, attack in attacks.items():
            found += attack_findings(model, attack, x, y, name=name, least=least)
    return found + (record_findings(records, attacks, least=least) if records else ())
