"""Fast paths: any attack on a prepared copy of the model, checked at the end on the model itself."""

from poise.fast.attack import Fast, Ready, accelerated, eager

__all__ = ["Fast", "Ready", "accelerated", "eager"]
