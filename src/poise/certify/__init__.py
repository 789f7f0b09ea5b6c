"""Certificates: bounds that no attack in the ball can cross, `certificate(model, x) -> Interval`."""

from poise.certify.certificate import Crown, Ibp, Interval, crown, ibp

__all__ = ["Crown", "Ibp", "Interval", "crown", "ibp"]
