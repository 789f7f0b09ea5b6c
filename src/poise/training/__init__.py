"""Training: a defense's loss, one loop on Lightning Fabric, resumable at every step."""

from poise.train_job import TrainJob
from poise.training.devices import fabric_for
from poise.training.exporting import export
from poise.training.loop import note, train
from poise.training.outcome import load
from poise.training.run import describe
from poise.training.stopping import Stopped

__all__ = ["Stopped", "TrainJob", "describe", "export", "fabric_for", "load", "note", "train"]
