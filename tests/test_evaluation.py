"""Evaluation: the judge believes its own forwards, whatever the attack, the batches or the modes."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from nets import fitted
from poise import InputError, attacks, data, evaluate
from poise.attacks import ATTACKS


def net(seed=0, *, dtype=torch.float64, classes=10):
    """A small smooth net on 8×8 images: without kinks, gradients do not jump with rounding."""
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 36, 16),
        nn.Tanh(),
        nn.Linear(16, classes),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return layers.to(dtype).eval()


def moody():
    """A net that answers otherwise in train mode, with one layer frozen by hand."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), net(dtype=torch.float32), nn.BatchNorm1d(10))
    model.train()
    model[3].eval()
    return model


def digits(images=64, batch_size=64):
    return data.load("digits", images=images, batch_size=batch_size)


@dataclass(frozen=True)
class Applied:
    """An attack that is any function of the images, and remembers the labels it was given."""

    function: Callable
    uses_labels: bool = False
    given: list = field(default_factory=list)

    def __call__(self, model, x, y=None, *, generator=None):
        self.given.append(y)
        return self.function(x)


def nothing(x):
    return x


def mirrored(x):
    return x.flip(3)


def shifted(x):
    return (x + 0.125 * torch.arange(8) / 7).clamp(0, 1)


# the judge's own word


def test_a_flipped_label_is_recorded_as_flipped():
    model = net()
    [(x, y)] = digits()
    records = evaluate(model, [(x, y)], Applied(mirrored))
    with torch.no_grad():
        clean, attacked = (model(seen.double()).softmax(dim=1) for seen in (x, x.flip(3)))
    flipped = clean.argmax(dim=1) != attacked.argmax(dim=1)
    assert flipped.any() and not flipped.all()
    assert torch.equal(records.kept, ~flipped)
    assert torch.equal(records.correct, clean.argmax(dim=1) == y)
    torch.testing.assert_close(records.clean, clean)
    torch.testing.assert_close(records.attacked, attacked)
    assert torch.equal(records.y, y)


def test_distances_are_those_of_the_returned_images():
    [(x, y)] = digits()
    records = evaluate(net(), [(x, y)], Applied(shifted))
    delta = (shifted(x.double()) - x.double()).flatten(1).numpy()
    np.testing.assert_allclose(records.linf, np.abs(delta).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(records.l2, np.sqrt((delta**2).sum(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(records.wasserstein, np.abs(delta).mean(axis=1), rtol=1e-12)
    assert (records.ssim < 1).all() and (records.ssim > 0).all()


def test_an_attack_that_does_nothing_changes_nothing():
    records = evaluate(net(), digits(), Applied(nothing))
    assert torch.equal(records.clean, records.attacked) and records.kept.all()
    assert records.linf.max() == 0 and records.l2.max() == 0 and records.wasserstein.max() == 0
    torch.testing.assert_close(records.ssim, torch.ones(64, dtype=torch.float64))


def test_an_attack_that_writes_into_its_input_is_seen_through():
    [(x, y)] = digits()
    before = x.clone()
    in_place = Applied(lambda x: x.add_(0.25).clamp_(0, 1))
    for model in (net(), net(dtype=torch.float32)):  # the caller's images are converted, or not
        records = evaluate(model, [(x, y)], in_place)
        torch.testing.assert_close(records.linf.double(), torch.full((64,), 0.25, dtype=torch.float64))
        assert torch.equal(x, before)


def test_the_judge_sees_other_batches_than_the_attack():
    # images on a tie may answer otherwise in another batch: the attack's batch must not decide
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x.flatten(1)[:, 20:30] - 1

    evaluate(model, digits(images=40, batch_size=10), Applied(nothing))
    assert sum(sizes) == 2 * 40 and max(sizes) < 10


def test_the_judge_lets_no_autocast_in():
    x = [(x, y) for x, y in digits()]
    model = net(dtype=torch.float32)
    plain = evaluate(model, x, Applied(shifted))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(model, x, Applied(shifted))
    assert torch.equal(plain.clean, inside.clean) and torch.equal(plain.attacked, inside.attacked)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_works_where_gradients_are_off(mode):
    model = net()
    plain = evaluate(model, digits(), attacks.adaptive(eps=0.1, steps=3))
    with mode():
        inside = evaluate(model, digits(), attacks.adaptive(eps=0.1, steps=3))
    assert torch.equal(plain.attacked, inside.attacked)
    assert plain.linf.max() > 0.05


# however the data is cut

# that each attack gives an image the same alone as in a batch, is its contract
CUT = {name: fitted(ATTACKS, name, eps=0.1, steps=5, queries=20) for name in ("auto", "cw", "square")} | {
    "pgd from a random start": attacks.pgd(eps=0.1, steps=5, random_start=True),
    "dropout of half": attacks.dropout(eps=0.1, steps=5, keep_fraction=0.5),
    "in l2": attacks.confsmooth(eps=0.5, steps=5, norm="l2"),
}


@pytest.mark.parametrize("attack", CUT.values(), ids=CUT)
def test_results_do_not_depend_on_how_the_data_is_cut(attack):
    whole, *cuts = (evaluate(net(1), digits(10, size), attack, seed=1) for size in (64, 4, 1))
    for cut in cuts:
        assert torch.equal(cut.y, whole.y)
        for name in ("clean", "attacked", "linf", "l2", "wasserstein", "ssim", "x", "x_adv"):
            torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["pgd from a random start", "dropout of half"])
def test_the_seed_decides_the_draws(name):
    one, same, other = (evaluate(net(), digits(), CUT[name], seed=seed).attacked for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_global_random_state_is_left_alone():
    model = net()
    before = torch.get_rng_state()
    evaluate(model, digits(), CUT["dropout of half"])
    assert torch.equal(torch.get_rng_state(), before)


# batches that live and die


def test_batches_may_lie_in_one_buffer_that_is_filled_again():
    def refilled():
        buffer = torch.empty(10, 1, 8, 8), torch.empty(10, dtype=torch.int64)
        for x, y in digits(40, batch_size=10):
            yield buffer[0].copy_(x), buffer[1].copy_(y)

    model = net(dtype=torch.float32)
    expected = evaluate(model, digits(40, batch_size=10), Applied(mirrored), examples=25)
    records = evaluate(model, refilled(), Applied(mirrored), examples=25)
    for name, value in expected.tensors().items():
        assert torch.equal(getattr(records, name), value), name


def test_batches_are_let_go_when_they_are_done():
    alive = []

    def batches():
        for x, y in digits(40, batch_size=10):
            array = x.numpy().copy()  # an array tells when its last tensor is gone
            alive.append(weakref.ref(array))
            yield torch.from_numpy(array), y
            del array, x
            assert sum(ref() is not None for ref in alive) <= 1

    evaluate(net(dtype=torch.float32), batches(), Applied(torch.clone), examples=0)
    assert len(alive) == 4


# several devices


def test_records_are_the_same_over_several_devices_and_told_in_order():
    model, told = net(dtype=torch.float32), []
    whole, dealt = (
        evaluate(model, digits(90, 16), CUT["auto"], seed=3, examples=20, devices=over, on_records=keep)
        for over, keep in (((), len), (("cpu",) * 3, told.append))
    )
    for field_name, value in whole.tensors().items():
        assert torch.equal(getattr(dealt, field_name), value), field_name
    assert torch.equal(torch.cat([part.y for part in told]), whole.y) and len(told) == 6


def test_devices_do_not_mind_batches_in_one_buffer_nor_a_model_in_train_mode():
    def refilled():
        buffer = torch.empty(10, 1, 8, 8), torch.empty(10, dtype=torch.int64)
        for x, y in digits(40, batch_size=10):
            yield buffer[0].copy_(x), buffer[1].copy_(y)

    expected = evaluate(moody().eval(), digits(40, batch_size=10), Applied(mirrored))
    model = moody()
    modes = [module.training for module in model.modules()]
    records = evaluate(model, refilled(), Applied(mirrored), devices=("cpu", "cpu"))
    assert torch.equal(records.attacked, expected.attacked) and torch.equal(records.y, expected.y)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("third", "error", "message"),
    [
        (lambda x: 1 / 0, ProcessRaisedException, "ZeroDivisionError"),
        (lambda x: x + 2, InputError, r"\[0, 1\]"),
    ],
)
def test_a_failure_on_one_device_ends_the_evaluation(third, error, message):
    def attack(model, x, y=None, *, generator=None):
        return third(x) if float(x.sum()) == last else x

    batches = [*digits(40, 8)]
    last = float(batches[2][0].double().sum())
    with pytest.raises(error, match=message):
        evaluate(net(), batches, attack, devices=("cpu", "cpu"))


def test_devices_of_two_kinds_are_refused():
    with pytest.raises(InputError, match="of one kind, got cpu, meta"):
        evaluate(net(), digits(8), Applied(nothing), devices=("cpu", "meta"))


# modes


@pytest.mark.parametrize("attack", [Applied(shifted), attacks.confsmooth(eps=0.1, steps=2)], ids=type)
def test_a_model_in_train_mode_is_judged_in_evaluation_mode_and_left_as_found(attack):
    found, eval_mode = moody(), moody().eval()
    modes = [module.training for module in found.modules()]
    state = {name: value.clone() for name, value in found.state_dict().items()}
    records, expected = (evaluate(model, digits(), attack) for model in (found, eval_mode))
    assert torch.equal(records.clean, expected.clean)
    assert torch.equal(records.attacked, expected.attacked)
    assert [module.training for module in found.modules()] == modes
    for name, value in found.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in found.parameters())


def test_modes_are_left_as_found_when_the_attack_fails():
    model = moody()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        evaluate(model, digits(), Applied(lambda x: 1 / 0))
    assert [module.training for module in model.modules()] == modes


# labels


def test_true_labels_go_to_the_attacks_that_use_them_alone():
    [(x, y)] = digits()
    for uses_labels in (True, False):
        attack = Applied(nothing, uses_labels)
        evaluate(net(), [(x, y)], attack)
        [given] = attack.given
        assert torch.equal(given, y) if uses_labels else given is None


def test_a_plain_function_is_an_attack_without_labels():
    given = []

    def attack(model, x, y=None, *, generator=None):
        given.append(y)
        return x

    evaluate(net(), digits(), attack)
    assert given == [None]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_whole_numbers_of_any_width(dtype):
    [(x, y)] = digits()
    attack = attacks.pgd(eps=0.1, steps=2)
    records = evaluate(net(), [(x, y.to(dtype))], attack)
    assert torch.equal(records.attacked, evaluate(net(), [(x, y)], attack).attacked)


# what is kept and counted


@pytest.mark.parametrize(("examples", "kept"), [(0, 0), (3, 3), (8, 8), (25, 25), (100, 40)])
def test_the_first_images_are_kept(examples, kept):
    [(x, _)] = digits(40)
    records = evaluate(net(), digits(40, batch_size=10), Applied(mirrored), examples=examples)
    assert len(records) == 40
    torch.testing.assert_close(records.x, x[:kept].double())
    torch.testing.assert_close(records.x_adv, x[:kept].double().flip(3))


def test_progress_counts_every_image():
    counts = []
    evaluate(net(), digits(40, batch_size=16), Applied(nothing), on_batch=counts.append)
    assert counts == [16, 16, 8]


def test_empty_batches_are_passed_over():
    [(x, y)] = digits(10)
    batches = [(x[:0], y[:0]), (x, y), (x[:0], y[:0])]
    assert len(evaluate(net(), batches, attacks.pgd(steps=1))) == 10


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))]])
def test_no_images_at_all_are_refused(batches):
    with pytest.raises(InputError, match="no images"):
        evaluate(net(), batches, Applied(nothing))


# refusals


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:-1], r"returned shape \(63, 1, 8, 8\) for images of shape \(64, 1, 8, 8\)"),
        (lambda x: x.flatten(1), "returned must have the four dimensions"),
        (lambda x: None, "returned must be a torch.Tensor"),
        (lambda x: x + 0.5, r"\[0, 1\]"),
        (lambda x: x - 0.01, r"\[0, 1\]"),
        (lambda x: x * 255, r"\[0, 1\]"),
    ],
)
def test_attacked_images_that_cannot_be_are_refused(function, message):
    with pytest.raises(InputError, match=message):
        evaluate(net(), digits(), Applied(function))


def test_attacked_images_of_nan_are_laid_at_the_attacks_door():
    with pytest.raises(InputError, match="NaN") as refusal:
        evaluate(net(), digits(), Applied(lambda x: x * float("nan")))
    assert "its weights" not in str(refusal.value)  # the model is sound


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.full((2, 1, 8, 8), 2.0), torch.tensor([0, 1]), r"x must lie in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), "floating point"),
        (torch.zeros(1, 8, 8), torch.tensor([0]), "four dimensions"),
        (torch.full((1, 1, 8, 8), float("nan")), torch.tensor([0]), "NaN"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0]), "one label an image"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 1.0]), "whole-number"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]), r"y must lie in \[0, 9\]"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([-1, 0]), r"y must lie in \[0, 9\]"),
    ],
)
def test_images_and_labels_that_cannot_be_are_refused(x, y, message):
    with pytest.raises(InputError, match=message):
        evaluate(net(), [(x, y)], Applied(nothing))


def test_a_model_of_probabilities_is_refused():
    with pytest.raises(InputError, match="softmax"):
        evaluate(nn.Sequential(net(), nn.Softmax(dim=1)), digits(), Applied(nothing))


def test_a_half_precision_model_is_refused():
    with pytest.raises(InputError, match=r"float16.*model\.float\(\)"):
        evaluate(net().half(), digits(), Applied(torch.clone))


def test_images_are_counted_from_where_an_evaluation_starts():
    broken = torch.full((1, 1, 8, 8), float("nan"))
    fine = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(fine, torch.zeros(3).long()), (broken, torch.zeros(1).long())]
    with pytest.raises(InputError, match=r"\b13\b"):
        evaluate(net(), batches, Applied(nothing), start=10)
