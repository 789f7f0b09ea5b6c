"""What every defense in the tables owes its caller. A new one is subjected to all of it."""

import copy
import dataclasses
import inspect
import math
import random
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from nets import conv_net, fitted, images
from poise import InputError, attacks, defenses
from poise.defenses import DEFENSES, READINGS
from poise.defenses.caat import CalibrationTraining
from poise.defenses.robust_augmix import RobustAugMix
from poise.defenses.uat_mix import MixedTraining

TABLE = {**DEFENSES, **READINGS}
VARIANTS = {
    "robust-augmix": {"augment": True},
    "caat": {"over": True},
    "at": {"steps": 5},
    "uat-mix": {"step": 0.01},
}
# Whose loss depends on the generator. ConfSmooth and Adaptive begin at x and draw nothing.
DRAWS = {"at", "trades", "robust-augmix", "ccat", "uat-mix", "mixup", "falcon"} | {
    name for name in TABLE if name.startswith("caat")
}


def takes(name):
    return inspect.signature(TABLE[name]).parameters


class Case(NamedTuple):
    """A defense by name, weak enough to be quick, with the options that make it a case of its own."""

    name: str
    options: dict

    def __str__(self):
        return "-".join([self.name, *self.options])

    @property
    def draws(self):
        return self.name in DRAWS

    def defense(self, **changes):
        return fitted(TABLE, self.name, **({"eps": 0.1, "step": 0.04, "steps": 2} | self.options | changes))


CASES = [Case(name, {}) for name in TABLE] + [Case(name, options) for name, options in VARIANTS.items()]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_name = pytest.mark.parametrize("name", TABLE)


def in_training(dtype=torch.float32, scale=3.0):
    """A net with BatchNorm in training, fresh; its Dropout, which would draw globally, does nothing."""
    net = copy.deepcopy(conv_net(dtype=dtype, scale=scale)).train()
    net[1].num_batches_tracked.zero_()
    net[3].p = 0.0
    return net


def batch(n=6, dtype=torch.float32):
    return images(n, 3, dtype=dtype), torch.arange(n) % 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(net):
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


@every_case
def test_the_loss_is_a_finite_scalar_whose_gradient_reaches_every_weight(case):
    net = in_training()
    loss = case.defense()(net, *batch(), generator())
    assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


@every_case
def test_float64_stays_float64(case):
    net = in_training(torch.float64)
    loss = case.defense()(net, *batch(dtype=torch.float64), generator())
    assert loss.dtype == torch.float64
    loss.backward()
    assert torch.isfinite(gradients(net)).all()


@every_case
def test_autocast_gives_a_float32_loss_and_every_weight_much_the_same_gradient(case):
    """Also where the attack was the first to cast the weights, without gradients."""
    plain, half = in_training(), in_training()
    case.defense()(plain, *batch(), generator()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.defense()(half, *batch(), generator())
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert torch.cosine_similarity(gradients(plain), gradients(half), dim=0) > 0.7
    assert all(parameter.grad.abs().max() > 0 for parameter in half.parameters())


class Half(nn.Module):
    """A net whose logits are in half precision."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).bfloat16()


@every_case
def test_logits_in_half_precision_give_a_float32_loss(case):
    loss = case.defense()(Half(in_training()), *batch(), generator())
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@every_case
def test_any_batch_size_and_saturated_logits_give_finite_losses_and_gradients(case):
    for n in (1, 2, 3, 7):
        net, (x, y) = in_training(scale=400.0), batch(n)
        with torch.no_grad():
            assert copy.deepcopy(net)(x).abs().max() > 100
        loss = case.defense()(net, x, y, generator())
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(gradients(net)).all(), n


@every_case
def test_the_same_generator_state_gives_the_same_bits(case):
    found = []
    for source in (generator(3), generator(3), None, None):
        net = in_training()
        loss = case.defense()(net, *batch(), source)
        loss.backward()
        found.append((loss.detach(), gradients(net)))
    for one, other in (found[:2], found[2:]):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@every_case
def test_the_generator_matters_exactly_to_those_who_draw(case):
    # A mean in float32 may depend on the order of the batch: two values are the same up to rounding.
    losses = [case.defense()(in_training(), *batch(), generator(seed)).item() for seed in range(4)]
    assert (max(losses) - min(losses) > 1e-6) == case.draws


@every_case
def test_nobody_s_random_state_is_touched(case):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for own in (None, generator(3)):
        case.defense()(in_training(), *batch(), own)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@every_case
def test_modes_gradients_flags_and_inputs_are_left_alone(case):
    net, (x, y) = in_training(), batch()
    net[2].eval()  # one that the caller set by hand
    net[0].bias.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    weights = copy.deepcopy(list(net.parameters()))
    x_before, y_before = x.clone(), y.clone()
    loss = case.defense()(net, x, y, generator())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters()) and x.grad is None
    for parameter, before in zip(net.parameters(), weights, strict=True):
        assert torch.equal(parameter, before) and parameter.requires_grad == before.requires_grad
    assert torch.equal(x, x_before) and torch.equal(y, y_before)
    loss.backward()
    assert net[0].bias.grad is None


class Watched(nn.Module):
    """A net that notes the modes in which it is called, and on how many images."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls, self.backwards = net, [], []

    def forward(self, x):
        self.calls.append(({module.training for module in self.net.modules()}, len(x)))
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self.backwards.append(len(grad)))
        return logits


@every_case
def test_one_outer_forward_in_training_the_rest_in_evaluation(case):
    """And BatchNorm statistics move by it alone. Only sam has a second, which works on copies."""
    net = Watched(in_training())
    case.defense()(net, *batch(), generator())
    modes = [modes for modes, _ in net.calls]
    outer = 2 if case.name == "sam" else 1
    assert modes == [{False}] * (len(modes) - outer) + [{True}] * outer
    assert net.net[1].num_batches_tracked == 1


# (forwards, backwards) of a training step at its default number of steps, in passes over the batch.
COST = {
    "vanilla": (1, 1),
    "at": (12, 11),
    "at-steps": (7, 6),  # AT-5
    "trades": (14, 12),
    "robust-augmix": (13, 12),
    "robust-augmix-augment": (14, 13),
    "ccat": (21.5, 21),  # forty steps on half the batch
    "caat": (12, 11),
    "caat-over": (24, 22),
    "caat-accumulated": (12, 11),
    "caat-rescaled": (12, 11),
    "caat-cited": (12, 11),
    "uat-gap": (12, 11),
    "uat-gap-unprojected": (12, 11),
    "uat-smooth": (7, 6),
    "uat-smooth-unprojected": (7, 6),
    "uat-mix": (7, 6),
    "uat-mix-step": (7, 6),
    "label-smoothing": (1, 1),
    "mixup": (1, 1),
    "sam": (2, 2),
    "falcon": (4, 3),
    "dca": (1, 1),
    "ibp": (1, 1),
}


@every_case
def test_the_passes_of_a_training_step(case):
    net, n = Watched(in_training()), 4
    defenses.build(case.name, **case.options)(net, *batch(n), generator()).backward()
    assert (sum(size for _, size in net.calls) / n, sum(net.backwards) / n) == COST[str(case)]


@pytest.mark.parametrize("backward", [1, 2])  # what a backward costs in forwards
@pytest.mark.parametrize(
    ("case", "bound"),
    [("uat-smooth", 0.65), ("uat-mix", 0.65), ("uat-gap", 1.08), ("trades", 1.2), ("robust-augmix", 1.2)],
)
def test_the_passes_relative_to_at_10(case, bound, backward):
    cost = {name: forwards + backward * backwards for name, (forwards, backwards) in COST.items()}
    assert cost[case] <= bound * cost["at"]


def names():
    """Every public name in poise's loaded modules."""
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith("poise")]
    return {k: v for module in loaded for k, v in vars(module).items() if isinstance(v, type)}


@every_case
def test_the_repr_is_the_full_configuration(case):
    defense = case.defense()
    assert eval(repr(defense), names()) == defense
    for field in dataclasses.fields(defense):
        assert f"{field.name}={getattr(defense, field.name)!r}" in repr(defense)


@every_case
def test_a_defense_is_a_frozen_value(case):
    defense = case.defense()
    assert defense == case.defense() and hash(defense) == hash(case.defense())
    with pytest.raises(dataclasses.FrozenInstanceError):
        defense.eps = 1.0


@every_name
def test_every_argument_is_by_name_and_has_a_default(name):
    assert TABLE[name]() == TABLE[name]()
    assert {parameter.kind for parameter in takes(name).values()} <= {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError, match="unexpected keyword argument 'alfa'"):
        TABLE[name](alfa=0.1)


@every_name
def test_the_defaults_are_the_paper_s(name):
    """Section 4.1; CCAT, which the paper does not run, has its own authors' attack."""
    paper = {"eps": 8 / 255, "step": 5 / 255, "steps": 10}
    if "uat-smooth" in name or name == "uat-mix":
        paper["steps"] = 5
    if name == "ccat":
        paper |= {"step": 0.005, "steps": 40}
    if name == "uat-mix":
        paper["step"] = None  # 5/8 of eps
    defaults = {key: parameter.default for key, parameter in takes(name).items() if key in paper}
    assert defaults == {key: paper[key] for key in defaults}


CHANGES = {
    "eps": 0.01,
    "step": 0.001,
    "steps": 3,
    "beta": 1.0,
    "weight": 2.5,
    "augment": True,
    "momentum": 0.5,
    "shrink": 2.0,
    "rho": 0.3,
    "keep_fraction": 0.5,
    "over": True,
    "share": 0.25,
    "smoothing": 0.5,
    "alpha": 0.7,
    "levels": 3,
    "calibration": 0.5,
    "entropy": 0.5,
    "clean": 0.25,
}


@every_name
def test_every_number_asked_for_makes_another_defense(name):
    for argument in takes(name):
        assert defenses.build(name, **{argument: CHANGES[argument]}) != TABLE[name](), argument


BAD = {
    "eps": [-0.1, math.nan, 1.5],
    "step": [-0.1, math.nan],
    "steps": [-1, 2.5],
    "beta": [-1.0, math.nan],
    "weight": [-1.0, math.inf],
    "momentum": [-0.1, 1.1],
    "shrink": [0.5],
    "keep_fraction": [0.0, 1.1],
    "share": [-0.1, 1.1],
    "smoothing": [-0.1, 1.1],
    "alpha": [0.0, -1.0],
    "levels": [0, 2.5],
    "calibration": [-1.0],
    "entropy": [-1.0],
    "rho": [-1.0, math.nan],
    "clean": [-0.1, 1.1],
}


@every_name
def test_a_value_out_of_range_is_refused_by_its_name(name):
    for argument, values in BAD.items():
        for value in values if argument in takes(name) else ():
            with pytest.raises(InputError, match=f"{argument}.*{value!r}"):
                TABLE[name](**{argument: value})


@pytest.mark.parametrize("name", [name for name in TABLE if "steps" in takes(name)])
def test_what_trains_on_attacked_images_refuses_to_attack_without_steps(name):
    with pytest.raises(InputError, match="steps must be a whole number of at least 1, got 0"):
        TABLE[name](steps=0)
    TABLE[name](steps=1)


def test_build_refuses_what_a_defense_does_not_take():
    with pytest.raises(InputError, match=r"defense 'sam' does not take eps and steps: it takes rho=0.05"):
        defenses.build("sam", eps=0.1, steps=3, rho=0.1)
    assert defenses.build("UAT_Mix", eps=0.1, step=None) == defenses.uat_mix(eps=0.1)
    with pytest.raises(InputError, match="trades"):
        defenses.build("trade")


@pytest.mark.parametrize("name", [name for name in TABLE if "step" in takes(name)])
def test_a_step_of_nothing_is_refused(name):
    for step in (0, 0.0):
        with pytest.raises(InputError, match=f"step must be a number above 0, got {step!r}"):
            TABLE[name](step=step)


def test_a_defense_of_an_attack_without_steps_is_refused_however_it_is_made():
    idle = attacks.pgd(steps=0)
    for make in (
        lambda: defenses.AdversarialTraining(idle),
        lambda: CalibrationTraining((attacks.pgd(), idle)),
        lambda: RobustAugMix(idle, 12.0),
        lambda: MixedTraining(attacks.pgd(), idle, 0.5),
    ):
        with pytest.raises(InputError, match="steps must be a whole number of at least 1, got 0"):
            make()
