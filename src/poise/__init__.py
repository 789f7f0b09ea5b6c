"""poise: a classifier's confidence, measured under attack and trained to hold.

Everything is imported when it is first asked for: `import poise` alone does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from poise.checks import InputError

if TYPE_CHECKING:
    from poise import (
        adversarial_sets,
        attacks,
        certify,
        compat,
        curves,
        data,
        defenses,
        diagnostics,
        draws,
        fast,
        metrics,
        models,
        objectives,
        recalibration,
        report,
        rules,
        threat,
    )
    from poise.auditing.auditor import audit
    from poise.evaluation import evaluate
    from poise.records import Records
    from poise.training import load, train
    from poise.watching import lightning_callback, under_attack

__version__ = "0.2.0"
__all__ = [
    "InputError",
    "Records",
    "adversarial_sets",
    "attacks",
    "audit",
    "certify",
    "compat",
    "curves",
    "data",
    "defenses",
    "diagnostics",
    "draws",
    "evaluate",
    "fast",
    "lightning_callback",
    "load",
    "metrics",
    "models",
    "objectives",
    "recalibration",
    "report",
    "rules",
    "threat",
    "train",
    "under_attack",
]

_NAMES = {
    "Records": "poise.records",
    "audit": "poise.auditing.auditor",
    "evaluate": "poise.evaluation",
    "lightning_callback": "poise.watching",
    "load": "poise.training",
    "train": "poise.training",
    "under_attack": "poise.watching",
}
_MODULES = {*__all__} - {"InputError", *_NAMES}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"poise.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'poise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
