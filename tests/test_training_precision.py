"""Half precision, memory formats and compilation change the numbers a little, and nothing else."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from poise import InputError, data, defenses, models
from poise.training import fabric_for, train
from poise.training.devices import InPrecision
from trainings import Noting, Spy, Still, Stop, bits, close, digits, job, normed


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture
def with_norm(monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", normed)


# precision, memory format, compilation


def on_cpu(precision):
    """Lightning offers float16 on GPUs alone; torch's autocast and gradient scaler work here too."""
    scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
    return Fabric(accelerator="cpu", plugins=[MixedPrecision(precision, "cpu", scaler)])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.half)])
def test_forward_passes_have_the_precision_asked_for(precision, dtype, images, tmp_path, monkeypatch):
    types_seen = set()

    def watched(**about):
        net = models.lenet(**about)
        net[0].register_forward_hook(lambda _, __, out: types_seen.add(out.dtype) if net.training else None)
        return net

    monkeypatch.setitem(models.MODELS, "watched", watched)
    settings = job("uat-smooth", model="watched", precision=precision, epochs=1)
    defense = defenses.build("uat-smooth", eps=0.1, steps=2)
    got = train(settings, images, defense, tmp_path / "run", fabric=on_cpu(precision))
    assert types_seen == {dtype}
    assert {p.dtype for p in got.parameters()} == {torch.float32}
    reference = train(replace(settings, precision="32-true"), images, defense, tmp_path / "full")
    close(got, reference, rtol=0, atol=0.005)
    assert bits(got) != bits(reference)


def test_half_precision_without_a_gpu_is_refused(images, tmp_path):
    settings = job(precision="16-mixed")
    with (
        pytest.warns(UserWarning, match="not supported on CPU"),
        pytest.raises(InputError, match="needs a GPU"),
    ):
        train(
            settings, images, defenses.vanilla(), tmp_path, fabric=fabric_for(settings, accelerator="cpu")
        )


def test_the_scale_of_gradients_is_resumed(images, tmp_path):
    def stop(task, done, of, note):
        if done == 5:
            raise Stop

    images = images.subset(32)  # float16 is slow on the CPU
    settings, runs = job(precision="16-mixed", epochs=8, batch_size=16), []
    for out, cut in (("whole", False), ("cut", True)):
        if cut:
            with pytest.raises(Stop):
                train(settings, images, Noting(0.1), tmp_path / out, fabric=tiring(), progress=stop)
        runs.append(train(settings, images, Noting(0.1), tmp_path / out, fabric=tiring()))
    assert bits(runs[0]) == bits(runs[1])


def tiring():
    """A scale that overflows in float16, and is halved at every step until it does no more."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_weights_cast_without_gradients_are_not_used_to_train():
    net = InPrecision(nn.Linear(2, 2), fabric_for(job(precision="bf16-mixed"), accelerator="cpu"))
    with torch.no_grad():
        net(torch.ones(1, 2))
    logits = net(torch.ones(1, 2))
    logits.sum().backward()
    assert net.net.weight.grad is not None and logits.dtype == torch.float32


def test_a_fabric_of_another_precision_is_refused(images, tmp_path):
    fabric = fabric_for(job(), accelerator="cpu")
    with pytest.raises(InputError, match="'32-true', the job's 'bf16-mixed'"):
        train(job(precision="bf16-mixed"), images, defenses.vanilla(), tmp_path, fabric=fabric)


def test_channels_last_changes_the_layout_and_little_else(tmp_path, with_norm, monkeypatch):
    digits = data.load("digits", split="train", images=64)
    colour = replace(digits, pixels=digits.pixels.repeat(1, 3, 1, 1))
    layouts = set()

    def watched(**about):
        net = nn.Sequential(*normed(**about)[:4], nn.Linear(144, 10))
        net.register_forward_pre_hook(
            lambda net, given: layouts.add(given[0].is_contiguous(memory_format=torch.channels_last))
        )
        return net

    monkeypatch.setitem(models.MODELS, "normed", watched)
    settings = job(model="normed", epochs=1, batch_size=64)
    reference = train(settings, colour, Still(), tmp_path / "plain")
    layouts.clear()
    got = train(replace(settings, channels_last=True), colour, Spy(), tmp_path / "last")
    assert True in layouts and got[0].weight.is_contiguous(memory_format=torch.channels_last)
    plain = train(settings, colour, Spy(), tmp_path / "spy")
    close(got, plain, rtol=0, atol=1e-6)
    assert not torch.equal(plain[0].weight, reference[0].weight)


def test_compile_is_asked_of_torch_for_the_net_that_trains(images, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: asked.append(net))
    got = train(job(compile=True, epochs=1), images, defenses.vanilla(), tmp_path)
    assert asked == [got]
