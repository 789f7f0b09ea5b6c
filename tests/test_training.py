"""Defenses give the loss of eq. 8; training resumes with the bits of a run that was never stopped."""

import itertools
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

import poise
from nets import fitted, shuffled
from poise import InputError, data, defenses, models, store
from poise.defenses import DEFENSES, READINGS, AdversarialTraining
from poise.training import TrainJob, loop, train
from trainings import Stop, bits


def stopping_at(step):
    """A progress callback that cuts the power after that many steps."""

    def progress(what, done, steps, loss):
        if done == step:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def images():
    return data.load("digits", split="train", images=256)


def job(defense="vanilla", **changes):
    """Three epochs of four steps; the rate is low enough for every defense to stay finite."""
    settings = {"model": "lenet", "epochs": 3, "batch_size": 64, "lr": 0.02, "seed": 1}
    return TrainJob(data="digits", defense=defense, **{**settings, **changes})


def built(name):
    """The defense of that name, weak enough to be quick."""
    return fitted({**DEFENSES, **READINGS}, name, eps=0.1, steps=3)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    """A plain training that nobody stopped: its folder, its model, and what it told on the way."""
    folder, calls = tmp_path_factory.mktemp("plain") / "run", []
    net = train(job(), images, defenses.vanilla(), folder, progress=lambda *call: calls.append(call))
    return SimpleNamespace(folder=folder, net=net, calls=calls)


def batch_norm_net(*, classes=10, shape=(1, 8, 8)):
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (height - 2) * (width - 2), classes),
    )


@pytest.fixture
def with_batch_norm(monkeypatch):
    """A model with buffers among those that can be trained by name."""
    monkeypatch.setitem(models.MODELS, "batch-norm", batch_norm_net)


# every defense


@pytest.fixture(params=DEFENSES)
def defense(request):
    return built(request.param)


@pytest.fixture
def batch(images):
    return next(iter(images.batched(64)))


def seeded_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return batch_norm_net().train()


def test_loss_is_a_finite_scalar_whose_gradient_reaches_every_weight(defense, batch):
    model = seeded_net()
    loss = defense(model, *batch, torch.Generator().manual_seed(0))
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


def test_the_generator_decides_the_loss(defense, batch):
    losses = [defense(seeded_net(), *batch, torch.Generator().manual_seed(3)).item() for _ in range(2)]
    assert losses[0] == losses[1]


def test_batch_norm_moves_by_the_outer_forward_alone(defense, batch):
    model = seeded_net()
    defense(model, *batch, torch.Generator().manual_seed(0))
    assert model[1].num_batches_tracked == 1
    assert model[1].running_mean.abs().max() > 0


def test_defenses_leave_modes_gradients_inputs_and_random_state(defense, batch):
    model = seeded_net()
    model[2].eval()  # one that the caller set by hand
    modes = [module.training for module in model.modules()]
    x, y = (t.clone() for t in batch)
    random = torch.get_rng_state()
    defense(model, *batch, torch.Generator().manual_seed(0))
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(batch[0], x) and torch.equal(batch[1], y)
    assert torch.equal(torch.get_rng_state(), random)


def test_defenses_are_values(defense):
    assert defense == type(defense)(**vars(defense))
    hash(defense)
    with pytest.raises(AttributeError):
        defense.attack = None


# eq. 8


@dataclass(frozen=True)
class Recording:
    """An attack that darkens the images, and remembers what it was given."""

    uses_labels: bool
    given: list = field(default_factory=list)

    def __call__(self, model, x, y=None, *, generator=None):
        self.given.append((x, y, generator))
        return x / 2


@pytest.mark.parametrize("uses_labels", [True, False])
def test_adversarial_training_is_cross_entropy_of_attacked_images_against_true_labels(uses_labels, batch):
    x, y = batch
    attack, generator, model = Recording(uses_labels), torch.Generator(), seeded_net()
    loss = AdversarialTraining(attack)(model, x, y, generator)
    [(given_x, given_y, given_generator)] = attack.given
    assert given_x is x and given_generator is generator
    assert given_y is y if uses_labels else given_y is None
    torch.testing.assert_close(loss, F.cross_entropy(seeded_net()(x / 2), y))


@pytest.mark.parametrize(
    ("name", "uses_labels", "steps"), [("at", True, 10), ("uat-gap", False, 10), ("uat-smooth", False, 5)]
)
def test_the_papers_defenses_attack_as_the_paper_says(name, uses_labels, steps):
    attack = defenses.build(name).attack
    assert attack.uses_labels is uses_labels and attack.steps == steps
    assert attack.ball.eps == 8 / 255


def test_at_begins_at_random(batch):
    losses = {built("at")(seeded_net(), *batch, torch.Generator().manual_seed(s)).item() for s in range(3)}
    assert len(losses) == 3


def test_vanilla_is_cross_entropy(batch):
    x, y = batch
    torch.testing.assert_close(defenses.vanilla()(seeded_net(), x, y), F.cross_entropy(seeded_net()(x), y))


# training is what the paper says


def test_training_is_sgd_with_nesterov_momentum_along_a_cosine(images, plain):
    settings = job()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        net = models.load("lenet", shape=images.shape).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = CosineAnnealingLR(optimizer, T_max=12)
    for epoch in range(3):
        for x, y in shuffled(images.batched(64), settings.seed * 1_000_003 + epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    for ours, reference in zip(plain.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)


def test_the_learning_rate_falls_along_a_cosine_also_after_a_stop(images, tmp_path):
    rates = []
    hook = register_optimizer_step_pre_hook(lambda sgd, *_: rates.append(sgd.param_groups[0]["lr"]))
    settings = job(lr=0.01)
    try:
        with pytest.raises(Stop):
            train(settings, images, defenses.vanilla(), tmp_path, progress=stopping_at(8))
        train(settings, images, defenses.vanilla(), tmp_path)
    finally:
        hook.remove()
    once_more = [4, 5, 6, 7]  # the epoch that was cut short
    steps = [*range(8), *once_more, *range(8, 12)]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 12)) / 2 for step in steps])


def test_training_learns(images, tmp_path):
    model = train(job(epochs=20, lr=0.1, batch_size=32), images, defenses.vanilla(), tmp_path)
    x, y = next(iter(data.load("digits", batch_size=360)))
    accuracy = (model(x).argmax(dim=1) == y).double().mean()
    assert accuracy > 0.6  # a tenth by chance, with a deviation of 0.016


# resuming


@pytest.mark.parametrize("name", ["vanilla", "uat-mix", "sam"])  # draws nothing, draws, shifts the weights
def test_a_resumed_run_has_the_bits_of_one_never_stopped(name, images, tmp_path):
    whole = train(job(name), images, built(name), tmp_path / "whole")
    for stop in (2, 6, 12):  # before the first checkpoint, within an epoch, before the last one ends
        with pytest.raises(Stop):
            train(job(name), images, built(name), tmp_path / "cut", progress=stopping_at(stop))
    cut = train(job(name), images, built(name), tmp_path / "cut")
    assert bits(cut) == bits(whole)
    losses = [
        pl.read_parquet(tmp_path / run / "metrics.parquet")["loss"].to_list() for run in ("cut", "whole")
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_keeps_its_buffers(images, tmp_path, with_batch_norm):
    settings = job("uat-smooth", model="batch-norm")
    whole = train(settings, images, built("uat-smooth"), tmp_path / "whole")
    with pytest.raises(Stop):
        train(settings, images, built("uat-smooth"), tmp_path / "cut", progress=stopping_at(6))
    cut = train(settings, images, built("uat-smooth"), tmp_path / "cut")
    assert bits(cut) == bits(whole)
    assert cut[1].num_batches_tracked == 12


def test_a_run_stopped_between_its_files_resumes(images, plain, tmp_path, monkeypatch):
    writes = itertools.count()
    write_tensors = store.write_tensors

    def failing(*args):  # in the second epoch, after metrics.parquet and before its checkpoint
        if next(writes) == 1:
            raise Stop
        write_tensors(*args)

    monkeypatch.setattr(store, "write_tensors", failing)
    with pytest.raises(Stop):
        train(job(), images, defenses.vanilla(), tmp_path / "cut")
    cut = train(job(), images, defenses.vanilla(), tmp_path / "cut")
    assert bits(cut) == bits(plain.net)
    assert pl.read_parquet(tmp_path / "cut" / "metrics.parquet")["epoch"].to_list() == [1, 2, 3]


def test_a_finished_run_is_not_trained_again(images, plain):
    times = {file: file.stat().st_mtime_ns for file in plain.folder.iterdir()}
    steps = []
    again = train(
        job(), images, defenses.vanilla(), plain.folder, progress=lambda *step: steps.append(step)
    )
    assert steps == []
    assert bits(again) == bits(plain.net)
    assert {file: file.stat().st_mtime_ns for file in plain.folder.iterdir()} == times


def brighter(images):
    """The same images with one pixel changed."""
    pixels = images.pixels.clone()
    pixels[0, 0, 0, 0] = 16
    return replace(images, pixels=pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": job(seed=2)}, "seed: 1 there, 2 now"),
        ({"settings": job(epochs=4)}, "epochs: 3 there, 4 now"),
        ({"settings": job(lr=0.03)}, "lr: 0.02 there, 0.03 now"),
        ({"defense": built("uat-gap")}, "defense_value"),
        ({"edit": brighter}, "fingerprint"),
        ({"edit": lambda images: images.subset(200)}, "images: 256 there, 200 now"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(changes, message, images, plain):
    with pytest.raises(InputError, match=message):
        train(
            changes.get("settings", job()),
            changes.get("edit", lambda same: same)(images),
            changes.get("defense", defenses.vanilla()),
            plain.folder,
        )


# what a run leaves behind


def test_a_run_can_be_loaded_by_its_folder(images, plain):
    loaded = poise.load(plain.folder)
    x, _ = next(iter(images))
    assert bits(loaded) == bits(plain.net)
    assert not plain.net.training and not loaded.training
    assert torch.equal(loaded(x), plain.net(x))


def test_a_run_that_has_not_finished_is_not_loaded(images, tmp_path):
    with pytest.raises(Stop):
        train(job(), images, defenses.vanilla(), tmp_path, progress=stopping_at(9))
    with pytest.raises(InputError, match="has not finished") as refusal:
        poise.load(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_what_is_no_training_run_is_not_loaded(tmp_path):
    with pytest.raises(InputError, match=r"no job\.json"):
        poise.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="no training run"):
        poise.load(store.open_run(tmp_path / "other", {"kind": "evaluate"}))


def test_a_run_says_what_it_was(images, plain):
    content = store.read_job(plain.folder)
    history = pl.read_parquet(plain.folder / "metrics.parquet")
    assert content["key"] == store.key_of(content["job"])
    assert content["job"]["seed"] == 1 and content["job"]["fingerprint"] == images.fingerprint()
    assert content["versions"]["poise"] == poise.__version__
    assert content["seconds"] == pytest.approx(history["seconds"].sum()) and content["seconds"] > 0
    assert history["epoch"].to_list() == [1, 2, 3]
    assert history["loss"].is_finite().all()


def test_the_clock_is_read_when_the_device_is_done(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(device.type))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: calls.append("clock") or 0.5)
    assert loop._clock(torch.device("cpu")) == 0.5 and calls == ["clock"]
    assert loop._clock(torch.device("cuda")) == 0.5 and calls == ["clock", "cuda", "clock"]


def test_an_epoch_is_timed_by_that_clock(images, tmp_path, monkeypatch):
    readings = iter([1.0, 3.0, 10.0, 15.0])
    monkeypatch.setattr(loop, "_clock", lambda device: next(readings))
    train(job(epochs=2), images, defenses.vanilla(), tmp_path)
    history = pl.read_parquet(tmp_path / "metrics.parquet")
    assert history["seconds"].to_list() == [2.0, 5.0]
    assert history["images_per_second"].to_list() == [128.0, 51.2]


def test_progress_tells_every_step(plain):
    assert [(step, steps) for _, step, steps, _ in plain.calls] == [(step, 12) for step in range(1, 13)]
    for i, call in enumerate(plain.calls):
        told = " ".join(map(str, call))
        assert "vanilla" in told and f"epoch {i // 4 + 1}/3" in told


@pytest.mark.parametrize("name", ["vanilla", "at"])
def test_the_seed_of_the_job_is_the_only_randomness(name, images, tmp_path):
    before = torch.get_rng_state()
    first = train(job(name), images, built(name), tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = train(job(name), images, built(name), tmp_path / "second")
    other = train(job(name, seed=2), images, built(name), tmp_path / "other")
    assert bits(first) == bits(second) != bits(other)


def test_the_batch_size_is_the_jobs_own(images, plain, tmp_path):
    assert bits(train(job(), images.batched(7), defenses.vanilla(), tmp_path)) == bits(plain.net)


# refusals


@pytest.mark.parametrize("name", ["vanilla", "at"])  # the loss is lost; the attack within it is
def test_a_diverged_run_names_its_folder_and_a_way_out(name, images, tmp_path):
    with pytest.raises(InputError, match="lower learning rate") as refusal:
        train(job(name, lr=1e6), images, built(name), tmp_path / "run")
    assert str(tmp_path / "run") in str(refusal.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"momentum": 1.5}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_job_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        job(**changes)


def test_an_unknown_model_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="did you mean lenet"):
        train(job(model="lenett"), images, defenses.vanilla(), tmp_path)


def test_a_collapsed_model_is_warned_of_and_noted(images, tmp_path):
    blank = replace(images, pixels=torch.zeros_like(images.pixels))  # one answer is all it can give
    with pytest.warns(UserWarning, match="same class"):
        train(job(epochs=1), blank, built("vanilla"), tmp_path / "run")
    assert store.read_job(tmp_path / "run")["collapsed"] is True
