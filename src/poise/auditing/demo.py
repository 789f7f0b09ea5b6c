"""The demo: a confident model loses its confidence, and one trained for it keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from poise import data, defenses
from poise.auditing.auditor import audit
from poise.auditing.outcome import Audit
from poise.progress import Progress, silent
from poise.training import TrainJob, train

EPS = (0.05, 0.15)  # of 8x8 digits: visible, and no digit turns into another to the eye
DEFENSES: Mapping[str, defenses.Defense] = {
    "vanilla": defenses.vanilla(),
    "uat-smooth": defenses.uat_smooth(eps=EPS[-1]),
}


def demo(out: str | Path = "demo", *, progress: Progress = silent) -> Audit:
    """Train LeNet on digits twice, plainly and by UAT-Smooth, and audit both.

    Half the paper's learning rate: at 0.1 UAT-Smooth on these small images can collapse to a
    constant output.
    """
    out, runs = Path(out), {}
    digits = {split: data.digits(split) for split in ("train", "test")}
    for name, defense in DEFENSES.items():
        job = TrainJob(data="digits", model="lenet", defense=name, epochs=60, lr=0.05)
        runs[name] = str(out / f"train-{name}")
        train(job, digits["train"], defense, runs[name], progress=progress)
    return audit(runs, digits["test"], eps=EPS, out=out / "audit", progress=progress)
