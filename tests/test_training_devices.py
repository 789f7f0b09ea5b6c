"""Two processes train the same model as one, and stop and go on together."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import polars as pl
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn
from torch.nn import functional as F

from poise import InputError, data, defenses, models, training
from poise.modes import evaluating
from poise.training import TrainJob, devices, fabric_for, train

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_training_devices import two_processes

two_processes(sys.argv[2])
"""
JOBS = {
    "at": {"model": "lenet", "batch_size": 128},
    "at-parts": {"model": "lenet", "batch_size": 128, "accumulate": 2},
    "vanilla": {"model": "normed", "batch_size": 128, "ema": 0.5, "validation": 0.1, "select": "accuracy"},
    "settled": {"model": "lenet", "batch_size": 128},
}


@dataclass(frozen=True)
class Settled:
    """A user's own loss, of a net in evaluation mode, asked twice: a wrapper would see an attack there."""

    def __call__(self, model, x, y, generator=None):
        with evaluating(model):
            return F.cross_entropy(model(x), y) + F.cross_entropy(model(1 - x), y)


def normed(*, classes=10, shape=(1, 8, 8)):
    """BatchNorm of the images themselves, whose statistics are known, and a head."""
    return nn.Sequential(nn.BatchNorm2d(shape[0]), nn.Flatten(), nn.Linear(64, classes))


models_added = {"normed": normed}


def job(name, **changes):
    settings = {"epochs": 2, "lr": 0.05, "seed": 1, **JOBS[name], **changes}
    return TrainJob(data="digits", defense=name.split("-")[0], **settings)


def run(name, out, **options):
    """257 images: the last batch has one, so that the second process gets none."""
    images = data.load("digits", split="train", images=257)
    kind = name.split("-")[0]
    strength = {} if kind == "vanilla" else {"eps": 0.1, "steps": 2}
    defense = Settled() if kind == "settled" else defenses.build(kind, **strength)
    return train(job(name), images, defense, out, **options)


def two_processes(out):
    """What each of two processes does."""
    models.MODELS.update(models_added)
    fabric = fabric_for(job("at"), devices=2, accelerator="cpu")
    sums = {}
    for name in JOBS:
        state = run(name, f"{out}/{name}", fabric=fabric).state_dict()
        sums[name] = [float(value.double().sum()) for value in state.values() if value.ndim]
    devices.TOGETHER = 2
    asked = []

    def only_the_second(self, request=training.loop._step):
        result = request(*self)
        if fabric.global_rank == 1 and not asked:
            asked.append(1)
            signal.raise_signal(signal.SIGTERM)
        return result

    training.loop._step = lambda *about: only_the_second(about)
    steps = []

    def note(task, done, of, words):
        steps.append(done)

    try:
        run("at", f"{out}/stopped", fabric=fabric, progress=note)
        said = "nothing"
    except training.Stopped as stop:
        said = str(stop)
    run("at", f"{out}/stopped", fabric=fabric, progress=note)
    try:
        train(
            job("at", lr=1e9),
            data.load("digits", split="train"),
            defenses.vanilla(),
            f"{out}/lost",
            fabric=fabric,
        )
        lost = "nothing"
    except InputError as error:
        lost = str(error)
    try:
        train(
            job("at", seed=2),
            data.load("digits", split="train"),
            defenses.vanilla(),
            f"{out}/at",
            fabric=fabric,
        )
        other = "nothing"
    except InputError as error:
        other = str(error)
    with open(f"{out}/{fabric.global_rank}.json", "w") as file:  # noqa: PTH123
        json.dump({"sums": sums, "said": said, "steps": steps, "lost": lost, "other": other}, file)
    fabric.barrier()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of the runs by two processes, and what each process saw."""
    out = tmp_path_factory.mktemp("both")
    script = out / "script.py"
    script.write_text(SCRIPT)
    here = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, str(script), here, str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_the_model_of_one(name, both, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", normed)
    one, two = run(name, tmp_path / name), training.load(both[0] / name)
    # rounding turns the sign of a gradient in a pixel or two, hence not 1e-6; each half of a batch is
    # normalised by its own statistics, whose mean is that of the batch, and whose variance is a little less
    tolerance = 0.02 if name == "vanilla" else 1e-4
    for key, value in one.state_dict().items():
        near = 1e-5 if key == "0.running_mean" else tolerance
        torch.testing.assert_close(two.state_dict()[key], value, rtol=0, atol=near, msg=key)
    losses = [pl.read_parquet(folder / name / "metrics.parquet")["loss"] for folder in (tmp_path, both[0])]
    assert losses[0].to_list() == pytest.approx(losses[1].to_list(), abs=tolerance)


def test_a_signal_to_one_process_stops_both_and_they_go_on_together(both):
    out, (first, second) = both
    for seen in (first, second):
        assert "after step 2 of 6" in seen["said"]
    assert first["steps"] == [1, 2, 3, 4, 5, 6] and second["steps"] == []
    whole, stopped = (training.load(out / name).state_dict() for name in ("at", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    losses = [pl.read_parquet(out / run / "metrics.parquet")["loss"].to_list() for run in ("at", "stopped")]
    assert losses[0] == losses[1]


def test_every_process_is_given_the_same_model(both):
    first, second = both[1]
    assert first["sums"] == second["sums"]


def test_both_processes_are_told_of_what_the_first_refuses(both):
    for seen in both[1]:
        assert "diverged" in seen["lost"] and "another configuration" in seen["other"]


# who takes what


class World:
    def __init__(self, world_size, global_rank):
        self.world_size, self.global_rank = world_size, global_rank


@pytest.mark.parametrize(("images", "world", "parts"), [(128, 2, 1), (101, 3, 2), (1, 2, 2), (7, 1, 3)])
def test_processes_and_parts_take_every_image_once_and_none_is_empty(images, world, parts):
    taken = []
    for rank in range(world):
        shares = list(devices.shares(images, World(world, rank), parts))
        sizes = [len(range(images)[share]) for share in shares]
        assert all(sizes) and len(shares) <= parts
        assert not sizes or max(sizes) - min(sizes) <= 1
        taken += [i for share in shares for i in range(images)[share]]
    assert sorted(taken) == list(range(images))


# devices that are not there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp"}, "strategy must be one of auto, ddp"),
        ({"devices": 0}, "devices"),
        ({"nodes": 0}, "nodes"),
        ({"accelerator": "abacus"}, "cannot be had"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fabric_for(job("at"), **options)


def test_torchrun_decides_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    said = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Fabric sets it, and would silence later warnings
    strategy = fabric_for(job("at"), accelerator="cpu").strategy
    assert strategy.num_processes == 2 and strategy.num_nodes == 3
