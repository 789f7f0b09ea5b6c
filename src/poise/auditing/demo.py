"""The demo: a confident model loses its confidence, and one trained for it keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from poise import attacks, data, defenses
from poise.auditing.audit import audit
from poise.progress import Progress, silent
from poise.training import TrainJob, train

EPS = 0.15  # of 8x8 digits: visible, and no digit turns into another to the eye
ATTACKS = ("pgd", "dropout", "adaptive", "confsmooth", "auto")
DEFENSES: Mapping[str, defenses.Defense] = {
    "vanilla": defenses.vanilla(),
    "uat-smooth": defenses.uat_smooth(eps=EPS),
}


def demo(out: str | Path = "demo", *, epochs: int = 60, progress: Progress = silent) -> list[Path]:
    """Train LeNet on digits twice, plainly and by UAT-Smooth, attack both; the two audits' folders.

    Half the paper's learning rate: at 0.1 UAT-Smooth on these small images can collapse to a
    constant output.
    """
    out, audits = Path(out), []
    digits = {split: data.digits(split) for split in ("train", "test")}
    for name, defense in DEFENSES.items():
        job = TrainJob(data="digits", model="lenet", defense=name, epochs=epochs, lr=0.05)
        trained = out / f"train-{name}"
        train(job, digits["train"], defense, trained, progress=progress)
        chosen = {attack: attacks.build(attack, eps=EPS) for attack in ATTACKS}

        def of_model(task: str, done: int, of: int, note: str = "", name: str = name) -> None:
            progress(f"{task} on {name}", done, of, note)

        audits.append(audit(str(trained), digits["test"], chosen, out / name, progress=of_model))
    return audits
