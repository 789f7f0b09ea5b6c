"""Every option of a training job changes what it should, against numbers worked by hand."""

import inspect
import math
from collections import Counter
from dataclasses import fields, replace

import polars as pl
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from poise import InputError, attacks, cli, defenses, models, store
from poise.cli import parsing
from poise.training import TrainJob, describe, train
from poise.training.batches import PADDING, Moves, crop_flip, generator, moves
from poise.training.schedule import budget, learning_rate, scale
from poise.training.weights import average, optimizer_of
from trainings import Noting, Spy, Still, close, digits, job, normed


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture
def with_norm(monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", normed)


# the key of a run


def test_options_at_their_defaults_are_no_part_of_the_configuration(images):
    plain = describe(job(), images, defenses.vanilla())
    assert set(plain) == {
        *("kind", "data", "model", "defense", "seed", "epochs", "lr", "momentum", "weight_decay"),
        *("batch_size", "defense_value", "images", "fingerprint", "classes", "shape"),
    }
    other = describe(job(ema=0.9, decay_norms=False), images, defenses.vanilla())
    assert {name: other[name] for name in set(other) - set(plain)} == {"ema": 0.9, "decay_norms": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "16"}, "precision must be one of"),
        ({"accumulate": 129}, "accumulate"),
        ({"accumulate": 0}, "accumulate"),
        ({"ema": 1.0}, "ema"),
        ({"warmup": 4}, "warmup .* epochs"),
        ({"warmup": 1, "schedule": "one-cycle"}, "rises by itself"),
        ({"schedule": "step"}, "schedule"),
        ({"augment": "flip"}, "augment"),
        ({"eps_warmup": -1}, "eps_warmup"),
        ({"validation": 1.0}, "validation"),
        ({"select": "pgd"}, "validation=0.1"),
        ({"select": "best", "validation": 0.1}, "select"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        job(**changes)


def test_every_option_is_a_flag_and_says_what_it_is():
    flags, meanings = parsing._options(cli.COMMANDS["train"]), inspect.getdoc(TrainJob)
    for option in fields(TrainJob):
        assert f"--{option.name.replace('_', '-')}" in flags
        assert f"\n    {option.name}: " in meanings


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("ema", "0.9", "a number"), ("freeze", 3, "text or null"), ("compile", 1, "true or false")],
)
def test_an_option_of_another_kind_is_damage(option, value, words, images, tmp_path):
    told = {**describe(job(), images, defenses.vanilla()), option: value}
    with pytest.raises(InputError, match=f"{option} must be {words}"):
        store.open_run(tmp_path / "run", told)


# learning rate


def rates(settings, images, out):
    found = []
    hook = register_optimizer_step_pre_hook(lambda sgd, *_: found.append(sgd.param_groups[0]["lr"]))
    try:
        train(settings, images, defenses.vanilla(), out)
    finally:
        hook.remove()
    return found


def test_a_warm_up_rises_linearly_and_the_cosine_falls_over_the_rest(images, tmp_path):
    found = rates(job(lr=0.04, warmup=1), images, tmp_path)  # two steps of warm-up, four of cosine
    half = 0.02 * math.sqrt(0.5)
    assert found == pytest.approx([0.02, 0.04, 0.04, 0.02 + half, 0.02, 0.02 - half])


def test_a_constant_rate_stays_after_its_warm_up(images, tmp_path):
    found = rates(job(lr=0.04, warmup=2, schedule="constant"), images, tmp_path)
    assert found == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04, 0.04])


@pytest.mark.parametrize("steps", [10, 21, 100])
def test_one_cycle_is_torchs(steps):
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = OneCycleLR(sgd, max_lr=0.5, total_steps=steps, cycle_momentum=False)
    settings = job(lr=0.5, schedule="one-cycle")
    for step in range(steps):
        ours = learning_rate(settings, step, steps)
        assert ours == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9), step
        sgd.step()
        if step < steps - 1:
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_stays_finite_and_positive_on_the_shortest_runs(steps):
    settings = job(lr=0.5, schedule="one-cycle")
    assert all(0 < learning_rate(settings, step, steps) <= 0.5 for step in range(steps))


# accumulation, average, weight decay


def test_two_parts_of_64_give_the_step_of_128(images, tmp_path):
    whole, parts = Spy(), Spy()
    reference = train(job(), images, whole, tmp_path / "whole")
    got = train(job(accumulate=2), images, parts, tmp_path / "parts")
    assert [len(x) for x in whole.seen] == [128] * 6 and [len(x) for x in parts.seen] == [64] * 12
    close(got, reference, rtol=0, atol=1e-6)
    losses = [
        pl.read_parquet(tmp_path / run / "metrics.parquet")["loss"].to_list() for run in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_unequal_parts_count_by_their_images(images, tmp_path):
    few = images.subset(101)  # one step of 101 images: parts of 34, 34 and 33
    reference = train(job(epochs=1), few, defenses.vanilla(), tmp_path / "whole")
    got = train(job(epochs=1, accumulate=3, lr=0.02), few, defenses.vanilla(), tmp_path / "parts")
    close(got, reference, rtol=0, atol=1e-6)


def test_attacked_images_do_not_depend_on_the_parts(images, tmp_path):
    at = defenses.build("at", eps=0.1, steps=2)  # from a random start
    reference = train(job("at", epochs=1), images, at, tmp_path / "whole")
    close(
        train(job("at", epochs=1, accumulate=2), images, at, tmp_path / "parts"),
        reference,
        rtol=0,
        atol=1e-5,
    )


def test_the_average_is_the_exponential_one_and_becomes_the_model(images, tmp_path):
    history = []

    def look(sgd, *_):
        history.append([p.detach().double().clone() for p in sgd.param_groups[0]["params"]])

    torch.manual_seed(1)
    hook = register_optimizer_step_post_hook(look)
    try:
        got = train(job(ema=0.35, lr=0.1), images, defenses.vanilla(), tmp_path)
    finally:
        hook.remove()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = [p.detach().double() for p in models.load("lenet", shape=images.shape).parameters()]
    for decay, weights in zip([1 / 10, 2 / 11, 3 / 12, 4 / 13, 0.35, 0.35], history, strict=True):
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for ours, reference in zip(got.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=0, atol=1e-6)
    gap = max(float((w - e).abs().max()) for w, e in zip(history[-1], expected, strict=True))
    assert gap > 1e-5  # the average is not the last point, so the test can tell them apart


def test_the_average_of_running_statistics_and_counts():
    shadow, net = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    net.running_mean.fill_(1.0), net.num_batches_tracked.fill_(7)
    average(shadow, net, 0.75, 100)
    assert shadow.running_mean.item() == 0.25 and shadow.num_batches_tracked.item() == 7


@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_of_one_step_by_hand(decay_norms, images, tmp_path, with_norm):
    settings = job(model="normed", epochs=1, batch_size=256, weight_decay=0.1, decay_norms=decay_norms)
    got = dict(train(settings, images, Still(), tmp_path).named_parameters())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = dict(normed().named_parameters())
    shrink = 1 - 0.02 * (1 + 0.9) * 0.1  # the first step of Nesterov's momentum is 1.9 gradients
    for name, weight in start.items():
        decays = decay_norms or name in ("0.weight", "5.weight")
        torch.testing.assert_close(got[name], weight * (shrink if decays else 1.0), msg=name)


def test_no_empty_group_of_weights():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    [group] = optimizer_of(net, job(decay_norms=False)).param_groups
    assert group["weight_decay"] == 5e-4 and len(group["params"]) == 1


def test_every_weight_is_in_one_group():
    decaying, others = optimizer_of(normed(), job(decay_norms=False)).param_groups
    assert [p.ndim for p in decaying["params"]] == [4, 2]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1] and others["weight_decay"] == 0


# random crops and mirror images


def test_crops_lie_within_the_padding_and_are_all_drawn():
    found = moves(20_000, torch.Generator().manual_seed(0))
    for offsets in (found.top, found.left):
        counts = Counter(offsets.tolist())
        assert set(counts) == set(range(2 * PADDING + 1))
        # each of 9 offsets 2,222 times with a deviation of 44: five of them
        assert all(abs(many - 20_000 / 9) < 222 for many in counts.values())
    assert abs(int(found.mirror.sum()) - 10_000) < 354  # five deviations of 70.7
    correlation = torch.corrcoef(torch.stack([found.top.double(), found.left.double()]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(20_000)


def test_a_crop_and_a_mirror_image_by_hand():
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
    by = Moves(torch.tensor([4, 3, 5]), torch.tensor([4, 4, 2]), torch.tensor([True, False, True]))
    mirrored, down, up = crop_flip(x, by)[:, 0].tolist()
    assert mirrored == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]  # the crop begins one row above the image
    assert up == [[4, 0, 0], [7, 0, 0], [0, 0, 0]]  # two columns before it, one row below, mirrored


def test_every_step_has_moves_of_its_own_apart_from_the_attacks_draws():
    def drawn(step, **kind):
        return torch.stack(moves(50, generator(job(), step, **kind))[:2]).tolist()

    assert drawn(3, images=True) == drawn(3, images=True)
    assert drawn(3, images=True) not in (drawn(4, images=True), drawn(3))


def test_every_seed_and_epoch_has_all_images_in_an_order_of_its_own(images, tmp_path):
    epochs = []
    for run, seed in enumerate((1, 1, 2)):
        spy = Spy()
        train(job(seed=seed, epochs=2), images, spy, tmp_path / str(run))
        first, second = torch.cat(spy.seen).flatten(1).tensor_split(2)
        epochs += [first, second]
    held = torch.cat([x for x, _ in images]).flatten(1)
    for order in (*epochs, held):
        assert sorted(order.tolist()) == sorted(held.tolist())
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[1], epochs[3])
    # 256! orders: equal ones by chance do not happen
    orders = [held, *epochs[2:]]
    for i, order in enumerate(orders):
        assert not any(torch.equal(order, other) for other in orders[:i])


def test_crops_are_the_same_in_parts_and_different_in_every_epoch(images, tmp_path):
    whole, again, parts = Spy(), Spy(), Spy()
    flat = images.subset(128)
    train(job(augment="crop-flip"), flat, whole, tmp_path / "whole")
    train(job(augment="crop-flip"), flat, again, tmp_path / "again")
    train(job(augment="crop-flip", accumulate=2), flat, parts, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.seen, again.seen, strict=True))
    for step, x in enumerate(whole.seen):
        assert torch.equal(x[0::2], parts.seen[2 * step]) and torch.equal(x[1::2], parts.seen[2 * step + 1])
    sums = [x.flatten(1).sum(dim=1).sort().values for x in whole.seen]
    assert not torch.equal(sums[0], sums[1]) and not torch.equal(sums[1], sums[2])
    assert x.shape == (128, 1, 8, 8)


# the budget


def test_the_budget_rises_to_the_defenses_own(images, tmp_path):
    defense = Noting(0.5)
    train(job("noting", eps_warmup=2), images, defense, tmp_path)
    assert defense.seen == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_a_budget_is_found_wherever_it_lies():
    at = defenses.build("at", eps=0.5)
    assert scale(at, 0.25).attack == replace(at.attack, ball=replace(at.attack.ball, eps=0.125))
    caat = defenses.build("caat", eps=0.5)
    assert budget(caat) == 0.5 and [budget(attack) for attack in scale(caat, 0.5).attacks] == [0.25]
    assert [budget(defenses.build("at", eps=eps)) for eps in (0.0, 0.99, 1.0)] == [0.0, 0.99, None]
    plain = defenses.vanilla()
    assert scale(plain, 0.5) is plain


@pytest.mark.parametrize(("norm", "eps"), [("l2", 2.0), ("l2", 1.0), ("l1", 12.0)])
def test_a_budget_of_one_or_more_is_one_in_other_norms_than_linf(norm, eps, images, tmp_path):
    defense = defenses.AdversarialTraining(attacks.pgd(eps=eps, norm=norm, steps=1))
    assert budget(defense) == eps and budget(defense, linf=True) is None
    nearest = defenses.AdversarialTraining(attacks.deepfool(eps=eps, norm=norm, steps=1))
    assert budget(nearest) == eps and budget(nearest, linf=True) is None
    assert budget(attacks.cw(eps=2.0)) == 2.0 and budget(attacks.square(norm="l2", eps=3.0)) == 3.0
    assert budget(attacks.deepfool(eps=0.5, norm="linf"), linf=True) == 0.5
    train(job("vanilla", eps_warmup=1), images, defense, tmp_path)  # warms up, is judged in L∞ at .03


@pytest.mark.parametrize("name", ["vanilla", "uat-gap-unprojected", "uat-smooth-unprojected"])
def test_a_defense_without_a_budget_has_none_to_warm_up(name, images, tmp_path):
    with pytest.raises(InputError, match="eps_warmup=1 needs a defense with a budget"):
        train(job(name, eps_warmup=1), images, defenses.build(name), tmp_path)
