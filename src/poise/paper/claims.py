"""Every statement of the paper that numbers can judge, and what a referee would ask of its defenses."""

from poise.paper.claims_attacks import ATTACK_CLAIMS
from poise.paper.claims_defenses import DEFENSE_CLAIMS
from poise.paper.claims_referee import REFEREE
from poise.paper.judging import Claim, judge

CLAIMS: tuple[Claim, ...] = (*ATTACK_CLAIMS, *DEFENSE_CLAIMS)

__all__ = ["CLAIMS", "REFEREE", "Claim", "judge"]
