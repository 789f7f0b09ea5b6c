"""Every statement of the paper that numbers can judge, and what a referee would ask of its defenses."""

from __future__ import annotations

from poise.paper.claims_accuracy import ACCURACY_CLAIMS
from poise.paper.claims_attacks import ATTACK_CLAIMS
from poise.paper.claims_confidence import CONFIDENCE_CLAIMS
from poise.paper.claims_referee import REFEREE
from poise.paper.judging import Claim, judge

CLAIMS: tuple[Claim, ...] = (*ATTACK_CLAIMS, *CONFIDENCE_CLAIMS, *ACCURACY_CLAIMS)

__all__ = ["CLAIMS", "REFEREE", "Claim", "judge"]
