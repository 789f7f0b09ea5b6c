"""Training begins from a file's weights, and trains the head alone."""

from functools import partial

import pytest
import torch
from torch import nn

from poise import InputError, defenses, models, store
from poise.training import train
from poise.training.batches import features
from poise.training.weights import freeze
from trainings import Spy, close, digits, job, normed


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture
def with_norm(monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", normed)


# the frozen backbone


def test_only_the_head_trains_and_cached_features_make_no_difference(
    images, tmp_path, with_norm, monkeypatch
):
    settings = job(model="normed", freeze="backbone", lr=0.1)
    forwards = []
    build = partial(counted, forwards)
    monkeypatch.setitem(models.MODELS, "normed", build)
    cached = train(settings, images, defenses.vanilla(), tmp_path / "cached")
    cached_forwards = len(forwards)
    forwards.clear()
    plain = train(settings, images, Spy(), tmp_path / "plain")
    close(cached, plain, rtol=0, atol=1e-5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = normed()
    for name, value in start.state_dict().items():
        assert torch.equal(cached.state_dict()[name], value) == (not name.startswith("5.")), name
    assert len(forwards) - cached_forwards == 6 - 2  # six steps against two batches once
    assert all(p.requires_grad for p in cached.parameters())


def counted(forwards, **about):
    net = normed(**about)
    net[0].register_forward_hook(lambda *_: forwards.append(1))
    return net


def test_features_are_not_taken_where_something_follows_the_head(images):
    torch.manual_seed(0)  # softplus of small logits can look like a sigmoid, which is refused: tanh cannot
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh()).train()
    assert features(net, net, images) is None
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert features(whole, whole, images).shape == (256, 64)


def test_augmented_or_attacked_images_are_not_cached(images, tmp_path, with_norm):
    settings = job(model="normed", freeze="backbone", lr=0.1, augment="crop-flip")
    close(
        train(settings, images, defenses.vanilla(), tmp_path / "a"),
        train(settings, images, Spy(), tmp_path / "b"),
        rtol=0,
        atol=1e-6,
    )


def test_any_submodule_can_be_frozen_its_statistics_too():
    net = normed().train()
    freeze(net, "1")
    assert not net[1].training and net[0].training and not net[1].weight.requires_grad
    with pytest.raises(InputError, match="known: backbone, 0, 1"):
        freeze(net, "layer4")
    with pytest.raises(InputError, match="no linear layer and no convolution"):
        freeze(nn.Sequential(nn.Flatten()), "backbone")
    with pytest.raises(InputError, match="nothing to train"):
        freeze(nn.Sequential(nn.Linear(1, 1)), "0")


# weights from elsewhere


def test_a_run_begins_from_a_files_weights_with_a_new_head(images, tmp_path, with_norm):
    source = normed(classes=3)
    store.write_tensors(tmp_path / "w.safetensors", source.state_dict())
    settings = job(model="normed", weights=str(tmp_path / "w.safetensors"), freeze="backbone", epochs=1)
    got = train(settings, images, defenses.vanilla(), tmp_path / "run")
    assert torch.equal(got[0].weight, source[0].weight) and got[5].weight.shape == (10, 144)
    facts = store.read_job(tmp_path / "run")["job"]
    assert facts["weights"] == store.file_hash(tmp_path / "w.safetensors")


class Bomb:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def test_weights_that_run_code_or_do_not_fit_are_refused(images, tmp_path):
    torch.save({"0.weight": Bomb(tmp_path / "it ran")}, tmp_path / "bomb.pt")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    for name, message in [
        ("bomb.pt", "cannot be read"),
        ("other.pt", "do not fit"),
        ("no.pt", "no weights"),
    ]:
        with pytest.raises(InputError, match=message):
            train(job(weights=str(tmp_path / name)), images, defenses.vanilla(), tmp_path / name[:3])
    assert not (tmp_path / "it ran").exists()
