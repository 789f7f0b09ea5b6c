"""What every attack in the table owes its caller. A new attack is subjected to all of it.

Where the ball or the choice of the point is the subject, an attack gets a case for every norm and
every `keep` that it takes; what the caller lends (model, images, random states) is looked at once an
attack, on the records of two runs that several laws share.
"""

import copy
import dataclasses
import inspect
import math
import random
import sys
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from nets import conv_net, fitted, images, lead, predictions
from poise import InputError
from poise.attacks import ATTACKS, build
from poise.threat import BALLS

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
EPS = {"linf": 0.06, "l2": 0.6, "l1": 4.0}
STEPS = 5
RANDOM = {
    "dropout",
    "noise",
    "pgd-random_start",
    "apgd_ce-random_start",
    "apgd_dlr-random_start",
    "random_confidence",
    "square",
}  # cases that draw, by the start of their names


def takes(name):
    return inspect.signature(ATTACKS[name]).parameters


class Case(NamedTuple):
    """An attack by name with the options that make it a case of its own."""

    name: str
    options: dict

    def __str__(self):
        return "-".join([self.name, *(k if v is True else str(v) for k, v in self.options.items())])

    @property
    def norm(self):
        return self.options.get("norm", "linf")

    @property
    def eps(self):
        return EPS[self.norm]

    @property
    def draws(self):
        return str(self).startswith(tuple(RANDOM))

    def attack(self, **changes):
        options = {"eps": self.eps, "step": self.eps / 3, "steps": STEPS, "queries": 20}
        return fitted(ATTACKS, self.name, **options | self.options | changes)


def offered(name, norm):
    """Whether the attack knows the norm: random search knows no L1."""
    try:
        return build(name, norm=norm) is not None
    except InputError:
        return False


def cases():
    """Every norm with the default `keep`, and the other one in one norm: no ball knows of `keep`."""
    for name in ATTACKS:
        keeps = ("last", "best") if "keep" in takes(name) else (None,)
        for norm in BALLS if "norm" in takes(name) else (None,):
            for keep in keeps if norm == "linf" else (takes(name)["keep"].default if keeps[0] else None,):
                options = {"norm": norm, "keep": keep}
                if norm is not None and not offered(name, norm):
                    continue
                yield Case(name, {k: v for k, v in options.items() if v is not None})
        if "random_start" in takes(name):
            yield Case(name, {"random_start": True})


CASES = list(cases())
ONCE = [Case(name, {}) for name in ATTACKS] + [case for case in CASES if "random_start" in case.options]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
each_once = pytest.mark.parametrize("case", ONCE, ids=str)
every_attack = pytest.mark.parametrize("name", ATTACKS)


def length(delta, norm):
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=ORDER[norm], dim=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@every_case
def test_attacked_images_lie_in_the_ball_and_in_the_box(case):
    x = images(6, 10)
    x_adv = case.attack()(conv_net(), x)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    if "eps" in takes(case.name):
        # Half an ulp of 1 a pixel is what float32 may add.
        rounding = float(length(torch.full((1, *x.shape[1:]), 2.0**-24), case.norm))
        assert (length(x_adv - x, case.norm) <= case.eps * (1 + 1e-6) + rounding).all()


@every_case
def test_attacked_images_have_moved(case):
    if case.name == "cw":  # nothing within these budgets is misclassified, so it gives x back
        case = Case("cw", {"eps": 3.0, "steps": 30})
    net, x = conv_net(), images(24, 10)
    x = x[lead(net, x).argsort(descending=True)[:6]]  # far from the boundary, so that a step can be kept
    if case.name == "dropout" and case.norm == "l1":  # its steps take few pixels, of which 1 in 20 is drawn
        case = Case(case.name, {**case.options, "steps": 40})
    moved = case.attack(step=case.eps / 50)(net, x) - x
    assert (length(moved, case.norm) > 0).all()


# Who takes a margin promises the label.
KEEPING = [case for case in CASES if "margin" in takes(case.name)]
SAFE = [case for case in KEEPING if case.options.get("keep") != "last"]  # with a margin by default


@pytest.mark.parametrize("case", SAFE, ids=str)
@pytest.mark.parametrize(("seed", "scale"), [(0, 2.0), (1, 30.0)])
def test_the_label_is_kept_in_a_fresh_forward_at_any_batch_size(case, seed, scale):
    net, x = conv_net(seed, scale=scale), images(24, seed + 10)
    x_adv = case.attack(steps=40)(net, x)  # long enough to come to rest on the boundary
    y = predictions(net, x)
    for size in (24, 7, 1):
        assert torch.equal(torch.cat([predictions(net, part) for part in x_adv.split(size)]), y)


@pytest.mark.parametrize("case", KEEPING, ids=str)
def test_the_margin_asked_for_is_kept_in_a_fresh_forward(case):
    net, x = conv_net(scale=30.0), images(24, 10)
    x_adv = case.attack(margin=0.05, steps=20)(net, x)
    assert torch.equal(predictions(net, x_adv), predictions(net, x))
    # An image that begins with less stays with what it has.
    assert (lead(net, x_adv) >= lead(net, x).clamp(max=0.05) - 1e-6).all()


@every_case
def test_an_image_alone_is_attacked_as_in_a_batch(case):
    net, x = conv_net(dtype=torch.float64), images(3, 10, dtype=torch.float64)
    together = case.attack()(net, x, generator=generator())
    alone = torch.cat([case.attack()(net, image[None], generator=generator()) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@each_once
def test_the_same_seed_gives_the_same_bits(case):
    net, x = conv_net(), images(4)
    first, second = (case.attack()(net, x, generator=generator(7)) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (case.attack()(net, x) for _ in range(2))
    assert torch.equal(first, second)


@each_once
def test_another_seed_gives_other_images_where_the_attack_draws_and_only_there(case):
    net, x = conv_net(), images(4)
    first, second = (case.attack(keep=None)(net, x, generator=generator(seed)) for seed in (0, 1))
    assert torch.equal(first, second) != case.draws


@each_once
def test_without_labels_the_prediction_is_meant(case):
    net, x = conv_net(), images(4)
    assert torch.equal(case.attack()(net, x), case.attack()(net, x, predictions(net, x)))


@pytest.mark.parametrize("case", [case for case in CASES if "eps" in takes(case.name)], ids=str)
def test_a_radius_of_zero_gives_x(case):
    x = images(4)
    assert torch.equal(case.attack(eps=0.0)(conv_net(), x), x)


@pytest.mark.parametrize("case", [case for case in CASES if "steps" in takes(case.name)], ids=str)
def test_no_steps_give_x(case):
    x = images(4).requires_grad_()
    x_adv = case.attack(steps=0)(conv_net(), x)
    assert torch.equal(x_adv, x) and x_adv.data_ptr() != x.data_ptr()
    assert not x_adv.requires_grad


@every_case
def test_an_empty_batch_gives_an_empty_batch(case):
    none = images(0)
    for y in (None, torch.zeros(0, dtype=torch.int64)):
        x_adv = case.attack()(conv_net(), none, y)
        assert x_adv.shape == none.shape and x_adv.dtype == none.dtype


@each_once
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_images_keep_their_dtype(case, dtype):
    x = images(4, dtype=dtype)
    x_adv = case.attack()(conv_net(dtype=dtype), x)
    assert x_adv.dtype == dtype and x_adv.shape == x.shape
    assert torch.isfinite(x_adv).all() and not torch.equal(x_adv, x)


@each_once
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_may_have_another_dtype_than_the_images(case, dtype):
    net, x = conv_net(), images(4)
    x_adv = case.attack()(lambda x: net(x).to(dtype), x)
    assert x_adv.dtype == torch.float32 and not torch.equal(x_adv, x)


@each_once
def test_labels_of_any_whole_number_type_are_the_same_labels(case):
    net, x = conv_net(), images(4)
    y = predictions(net, x)
    expected = case.attack()(net, x, y)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(case.attack()(net, x, y.to(dtype)), expected), dtype


@each_once
def test_a_plain_function_will_do_as_a_model(case):
    net, x = conv_net(), images(4)
    assert torch.equal(case.attack()(lambda x: net(x), x), case.attack()(net, x))


@every_case
def test_any_memory_layout_will_do(case):
    net, x = conv_net(dtype=torch.float64), images(4, dtype=torch.float64)
    other = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(case.attack()(net, other), case.attack()(net, x), rtol=0, atol=1e-9)


@every_case
def test_autocast_will_do(case):
    net, x = conv_net(), images(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = case.attack()(net, x)
    assert x_adv.dtype == torch.float32 and torch.isfinite(x_adv).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all() and not torch.equal(x_adv, x)
    if "eps" in takes(case.name):
        assert (length(x_adv - x, case.norm) <= case.eps * (1 + 1e-5)).all()


@each_once
def test_gradients_switched_off_outside_change_nothing(case):
    net, x = conv_net(), images(4)
    expected = case.attack()(net, x, predictions(net, x))
    with torch.no_grad():
        assert torch.equal(case.attack()(net, x), expected)
    with torch.inference_mode():
        born_inside = x.clone()
        labels = net(born_inside).argmax(dim=1)
        assert torch.equal(case.attack()(net, x), expected)
        assert torch.equal(case.attack()(net, born_inside, labels), expected)
    assert torch.equal(case.attack()(net, born_inside), expected)
    assert torch.equal(case.attack()(net, x, labels), expected)


def borrowed():
    """A net in training, with a frozen BatchNorm, a frozen weight, a gradient and hooks."""
    net = copy.deepcopy(conv_net()).train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    net[0].weight.grad = torch.full_like(net[0].weight, 3.0)
    net[2].register_forward_hook(lambda module, inputs, output: None)
    net[0].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    return net


def state(net):
    """All that could have changed in a net."""
    return {
        "modes": [module.training for module in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
        "tensors": {name: value.tolist() for name, value in net.state_dict().items()},
        "hooks": [
            [list(hooks) for name, hooks in sorted(vars(module).items()) if name.endswith("_hooks")]
            for module in net.modules()
        ],
    }


class Watch(nn.Module):
    """A borrowed net that notes the modes in which it is called."""

    def __init__(self):
        super().__init__()
        self.net, self.modes = borrowed(), set()

    def forward(self, x):
        self.modes |= {module.training for module in self.modules()}
        return self.net(x)


def outside():
    """What an attack shares with the rest of the program: random states and the gradient mode."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "gradients": torch.is_grad_enabled(),
    }


class Run(NamedTuple):
    """One attack on a net in training: what was lent, before and after, and what came of it."""

    net: Watch
    x: torch.Tensor
    x_adv: torch.Tensor
    before: tuple
    after: tuple

    @classmethod
    def of(cls, case, x, source, mode):
        net = Watch().train()
        with mode():
            before = copy.deepcopy(state(net)), outside(), x.detach().clone()
            x_adv = case.attack()(net, x, generator=source)
            return cls(net, x, x_adv, before, (state(net), outside(), x.detach().clone()))


@pytest.fixture(scope="module", params=ONCE, ids=str)
def runs(request):
    """Of every attack two runs, in which all that may be given differs."""
    return [
        Run.of(request.param, images(4), None, nullcontext),
        Run.of(request.param, images(4).requires_grad_(), generator(3), torch.no_grad),
    ]


def test_the_model_is_given_back_as_it_was(runs):
    for run in runs:
        for what, value in run.before[0].items():
            assert run.after[0][what] == value, what


def test_the_model_is_in_evaluation_mode_while_it_is_attacked(runs):
    assert [run.net.modes for run in runs] == [{False}] * 2


def test_the_images_are_left_alone_and_the_result_is_a_tensor_of_its_own(runs):
    for run in runs:
        assert torch.equal(run.after[2], run.before[2]) and run.x.grad is None
        assert not run.x_adv.requires_grad
        assert run.x_adv.untyped_storage().data_ptr() != run.x.untyped_storage().data_ptr()


def test_nobody_s_random_state_is_touched_and_the_gradient_mode_is_given_back(runs):
    for run in runs:
        for what, value in run.before[1].items():
            assert run.after[1][what] == value, what


@each_once
def test_the_model_is_given_back_as_it_was_also_after_an_error(case):
    net = borrowed()
    before = copy.deepcopy(state(net))
    calls = []

    def fail(module, inputs):
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("out of memory, say")

    handle = net.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        case.attack()(net, images(4))
    handle.remove()
    assert state(net) == before


def names():
    """Every public name in poise's loaded modules."""
    known = [
        name for name in sys.modules if name.startswith("poise") and "certify" not in name
    ]  # own balls
    loaded = [sys.modules[name] for name in known]
    return {k: v for module in loaded for k, v in vars(module).items() if isinstance(v, type)}


@every_case
def test_the_repr_is_the_full_configuration(case):
    attack = case.attack()
    assert eval(repr(attack), names()) == attack
    for field in dataclasses.fields(attack):
        assert f"{field.name}={getattr(attack, field.name)!r}" in repr(attack)


@each_once
def test_an_attack_is_a_frozen_value(case):
    attack = case.attack()
    assert attack == case.attack() and hash(attack) == hash(case.attack())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(attack, dataclasses.fields(attack)[0].name, None)


@every_attack
def test_every_argument_is_by_name_and_has_a_default(name):
    assert ATTACKS[name]() == ATTACKS[name]()
    kinds = {parameter.kind for parameter in takes(name).values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


PAPER = {
    "eps": 0.03,
    "step": None,  # 5/255 in L∞, see below
    "steps": 20,
    "grow": 1.1,
    "smoothing": 0.98,
    "keep_fraction": 0.05,
    "norm": "linf",
}


MINIMAL = ("cw", "deepfool")  # they seek the nearest point, without a budget, by their papers' defaults


@every_attack
def test_the_defaults_are_the_paper_s_evaluation(name):
    defaults = {k: parameter.default for k, parameter in takes(name).items() if k in PAPER}
    if name not in MINIMAL:
        assert defaults == {k: PAPER[k] for k in defaults}


def test_the_first_step_is_the_paper_s_in_linf_and_fits_the_budget_elsewhere():
    assert {build(name).step for name in ("pgd", "dropout", "adaptive", "confsmooth")} == {5 / 255}
    assert build("confsmooth", norm="l2", eps=2.0, steps=10).step == 0.5


@each_once
def test_every_number_asked_for_makes_another_attack(case):
    changes = {
        "eps": 0.01,
        "step": 0.001,
        "steps": 2,
        "grow": 1.5,
        "smoothing": 0.5,
        "margin": 0.02,
        "keep_fraction": 0.5,
    }
    for argument in changes.keys() & takes(case.name).keys():
        assert case.attack(**{argument: changes[argument]}) != case.attack(), argument


REFUSED = {
    "eps": [-0.1, math.nan, math.inf, "0.1", True],
    "step": [-0.1, 0.0, math.nan, math.inf, "0.1", True],
    "steps": [-1, 2.5, "3", True],
    "smoothing": [-0.01, 1.01, math.nan, "0.5"],
    "accept": ["maybe", "", None],
    "keep_fraction": [-0.1, 0.0, 1.01, math.nan],
    "grow": [0.9, -1.0, math.nan, math.inf],
    "margin": [-0.1, 1.1, math.nan],
    "keep": ["first", None, 3],
    "norm": ["l7", "", 2, None],
    "target": [-0.1, 0.0, 1.0, math.nan],
    "halvings": [-1, 2.5],
    "queries": [-1, 2.5, "3"],
    "p_init": [-0.1, 1.1, math.nan],
    "outputs": ["scores", None],
    "confidence": [-1.0, math.inf],
    "binary_search": [0, 1.5],
    "lr": [-0.1, math.nan],
    "initial": [0.0, math.inf],
    "overshoot": [-0.1, math.nan],
    "candidates": [1, "10"],
    "restarts": [0, -1, 2.5],
    "tries": [0, -1, 2.5],
}


@every_attack
def test_the_refusals_know_every_argument(name):
    assert takes(name).keys() <= {*REFUSED, "random_start"}


@pytest.mark.parametrize(
    ("name", "argument"), [(name, a) for name in ATTACKS for a in REFUSED if a in takes(name)]
)
def test_a_value_out_of_range_is_refused_by_its_name(name, argument):
    for value in REFUSED[argument]:
        with pytest.raises(InputError, match=f"{argument}.*{value!r}"):
            ATTACKS[name](**{argument: value})


@every_attack
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
        ATTACKS[name](alpha=0.1)
