"""Certificates: bounds that no attack in the ball can cross, `certificate(model, x) -> Interval`."""

from collections.abc import Callable, Mapping

from poise.certify.bracket import UnsoundError
from poise.certify.certificate import Certificate, Crown, Ibp, Interval, crown, ibp, remembered

CERTIFICATES: Mapping[str, Callable[..., Certificate]] = {"ibp": ibp, "crown": crown}

__all__ = [
    "CERTIFICATES",
    "Certificate",
    "Crown",
    "Ibp",
    "Interval",
    "UnsoundError",
    "crown",
    "ibp",
    "remembered",
]
