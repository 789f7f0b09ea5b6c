"""What trainers bring along: an optimizer by name, patience, a network, loggers; the numbers at the end."""

import copy

import polars as pl
import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

import poise
from nets import conv_net
from poise import InputError, defenses, store, training
from poise.cli import main
from poise.training import checkpoint, train
from poise.training.weights import optimizer_of
from trainings import Stop, digits, job

VANILLA = defenses.vanilla()


def test_adamw_steps_as_torchs_own(tmp_path):
    data = digits()
    settings = job(optimizer="adamw", lr=1e-3, momentum=0.8, weight_decay=0.1, schedule="constant")
    net = train(settings, data, VANILLA, tmp_path / "run")
    torch.manual_seed(settings.seed)
    ours = poise.models.load("lenet", classes=10, shape=data.shape).train()
    optimizer = torch.optim.AdamW(ours.parameters(), 1e-3, betas=(0.8, 0.999), weight_decay=0.1)
    order = training.loop.begin(settings, data.batched(128), VANILLA, Fabric(accelerator="cpu")).order
    for epoch in range(3):
        for x, y in data.batched(128).batches(order(epoch)):
            optimizer.zero_grad()
            F.cross_entropy(ours(x), y).backward()
            optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name])
    flat = optimizer_of(ours, job(optimizer="adamw", decay_norms=False)).param_groups[1]
    assert flat["weight_decay"] == 0 and all(p.ndim < 2 for p in flat["params"])


def test_adamw_goes_on_after_a_stop_with_the_same_bits(tmp_path, monkeypatch):
    data, settings = digits(), job(optimizer="adamw", lr=1e-3)
    whole = train(settings, data, VANILLA, tmp_path / "whole")
    save = checkpoint.save
    with monkeypatch.context() as cut:

        def once(folder, run):
            save(folder, run)
            raise Stop

        cut.setattr(checkpoint, "save", once)
        with pytest.raises(Stop):
            train(settings, data, VANILLA, tmp_path / "cut")
    again = train(settings, data, VANILLA, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_patience_ends_a_training_that_gets_no_better(tmp_path):
    settings = job(epochs=9, lr=1e-9, validation=0.25, select="accuracy", patience=2)
    train(settings, digits(), VANILLA, tmp_path)
    assert len(pl.read_parquet(tmp_path / "metrics.parquet")) == 3
    assert store.read_job(tmp_path)["selected_epoch"] == 1
    assert settings == job(epochs=9, lr=1e-9, validation=0.25, select="accuracy", patience=2)
    with pytest.raises(InputError, match="needs to know which epoch is better"):
        job(patience=2)


def test_a_network_is_trained_as_a_copy_and_read_again_with_it(tmp_path):
    data = digits()
    net = copy.deepcopy(conv_net(classes=10, shape=data.shape, scale=0.1))
    before = copy.deepcopy(net.state_dict())
    trained = train(job(lr=0.05), data, VANILLA, tmp_path, model=net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not torch.equal(trained[-1].weight, net[-1].weight)
    x, _ = next(iter(data))
    read = poise.load(tmp_path, model=net)
    assert torch.equal(read(x), trained(x)) and read.class_names == data.classes
    assert torch.equal(train(job(lr=0.05), data, VANILLA, tmp_path, model=net)(x), trained(x))
    with pytest.raises(InputError, match=r"a Sequential: give it again, poise\.load\(run, model=net\)"):
        poise.load(tmp_path)
    with torch.no_grad():
        net[-1].bias.add_(1)
    with pytest.raises(InputError, match="another configuration"):
        train(job(lr=0.05), data, VANILLA, tmp_path, model=net)


class Kept:
    """A logger as Fabric takes them."""

    def __init__(self):
        self.told = []

    def log_metrics(self, metrics, step=None):
        self.told.append((step, metrics))


def test_the_loggers_of_a_fabric_get_every_epochs_numbers(tmp_path):
    logger = Kept()
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    train(job(epochs=2), digits(), VANILLA, tmp_path, fabric=fabric)
    rows = pl.read_parquet(tmp_path / "metrics.parquet").to_dicts()
    assert [step for step, _ in logger.told] == [1, 2]
    assert all(told["loss"] == row["loss"] for (_, told), row in zip(logger.told, rows, strict=True))


def test_the_command_ends_with_the_numbers_of_the_weights_that_it_left(tmp_path, capsys):
    flags = ["--data", "digits", "--images", "80", "--epochs", "2", "--lr", "0.01"]
    flags += ["--validation", "0.5", "--select", "accuracy", "--optimizer", "adamw", "--accelerator", "cpu"]
    main(["train", *flags, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out.splitlines()[-1]
    chosen = store.read_job(tmp_path / "run")["selected_epoch"]
    row = pl.read_parquet(tmp_path / "run" / "metrics.parquet").to_dicts()[chosen - 1]
    assert f"epoch {chosen}/2, loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}" in said
