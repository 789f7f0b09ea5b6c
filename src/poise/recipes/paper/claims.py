"""Every statement of the paper that numbers can judge, and what a referee would ask of its defenses."""

from __future__ import annotations

from poise.recipes.paper.claims_accuracy import ACCURACY_CLAIMS
from poise.recipes.paper.claims_attacks import ATTACK_CLAIMS
from poise.recipes.paper.claims_confidence import CONFIDENCE_CLAIMS
from poise.recipes.paper.claims_referee import REFEREE
from poise.recipes.paper.judging import Claim, judge

CLAIMS: tuple[Claim, ...] = (*ATTACK_CLAIMS, *CONFIDENCE_CLAIMS, *ACCURACY_CLAIMS)

__all__ = ["CLAIMS", "REFEREE", "Claim", "judge"]
