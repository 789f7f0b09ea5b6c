"""A finding: what was seen, on how many images, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from poise.shapes import Mask

LEAST = 0.05  # the share of images from which on there is a finding


@dataclass(frozen=True)
class Finding:
    """One thing that makes an audit's numbers doubtful; `dataclasses.asdict` of it is JSON.

    Attributes:
        kind: a short name, the same for every finding of the kind.
        attack: the attack's name, empty where the finding is about the model.
        share: of the images that were looked at, in [0, 1].
        seen: one sentence on what was seen.
        advice: one sentence on what to do.
    """

    kind: str
    attack: str
    share: float
    seen: str
    advice: str

    def __str__(self) -> str:
        """The finding as one line of text.

        >>> print(Finding("randomised", "", 0.5, "50 % of the answers change.", "Fix the seed."))
        randomised: 50 % of the answers change. Fix the seed.
        """
        about = f" ({self.attack})" if self.attack else ""
        return f"{self.kind}{about}: {self.seen} {self.advice}"


def of_images(kind: str, attack: str, mask: Mask, seen: str, advice: str) -> Finding:
    """The finding that what the mask (n,) marks was seen."""
    share = float(mask.double().mean())
    return Finding(kind, attack, share, f"{share:.1%} {seen}.", advice)


def above_least(found: list[Finding], least: float) -> tuple[Finding, ...]:
    """Those whose share is not 0 and at least the least."""
    return tuple(finding for finding in found if finding.share > 0 and finding.share >= least)
