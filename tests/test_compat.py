"""The call shapes of torchattacks, adv-lib and foolbox, against the first and the last of them."""

from functools import partial
from inspect import signature

import foolbox
import numpy
import pytest
import torch
import torchattacks as theirs

from nets import Counting, confidence, conv_net, images, predictions
from poise import InputError
from poise import attacks as poise_attacks
from poise.attacks import ATTACKS
from poise.compat import advlib, torchattacks
from poise.compat import foolbox as compat_foolbox

SPELLED = {  # what a torchattacks user would type
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "CW",
    "deepfool": "DeepFool",
    "square": "Square",
    "adaptive": "Adaptive",
    "confsmooth": "ConfSmooth",
    "auto": "Auto",
    "dropout": "Dropout",
    "max_miscalibration": "MaxMiscalibration",
    "square_underconfidence": "SquareUnderconfidence",
}
CLASSIC = ["FGSM", "PGD", "CW", "DeepFool", "Square"]
KEEPING = ["adaptive", "confsmooth", "auto", "pgd_bisect", "overconfidence", "square_underconfidence"]
SHORT = {"cw": {"steps": 5, "binary_search": 2}}  # the others: below
each_seed = pytest.mark.parametrize("seed", range(3))


def short(name):
    """Options that make the attack quick, in poise's names."""
    takes = signature(ATTACKS[name]).parameters
    return SHORT.get(name) or {k: v for k, v in {"steps": 3, "queries": 5}.items() if k in takes}


def called(name, options):
    """The same options as torchattacks spells them."""
    theirs_too = {"queries": "n_queries"} if name == "square" else {}
    return {theirs_too.get(option, option): value for option, value in options.items()}


def wrong(net, x):
    """Labels of which every second one is not the prediction."""
    y = predictions(net, x)
    return torch.where(torch.arange(len(x)) % 2 == 0, y, (y + 1) % 5)


# torchattacks


@pytest.mark.parametrize(("name", "spelled"), SPELLED.items())
def test_torchattacks_spelling(name, spelled):
    assert torchattacks.NAMES[spelled] == name
    assert getattr(torchattacks, spelled).__name__ == spelled


def test_every_attack_is_in_torchattacks_shape():
    assert sorted(torchattacks.NAMES.values()) == sorted(ATTACKS)
    assert all(spelled.isidentifier() and spelled[0].isupper() for spelled in torchattacks.NAMES)


@pytest.mark.parametrize("name", CLASSIC)
def test_arguments_order_and_defaults_are_torchattacks_own(name):
    model, *expected = list(signature(getattr(theirs, name)).parameters.values())
    ours = list(signature(getattr(torchattacks, name)).parameters.values())
    assert [(p.name, p.default) for p in ours[1 : len(expected) + 1]] == [
        (p.name, p.default) for p in expected
    ]
    assert ours[0].name == model.name
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(expected) + 1 :])


@each_seed
@pytest.mark.parametrize("arguments", [(), (0.1,), (0.1, 0.02, 3)])
def test_pgd_and_fgsm_are_torchattacks_but_for_the_last_bit_of_the_budget(arguments, seed):
    net, x = conv_net(seed), images(8, seed)
    y = wrong(net, x)
    ours = torchattacks.PGD(net, *arguments, random_start=False)(x, y)
    apart = (ours - theirs.PGD(net, *arguments, random_start=False)(x, y)).abs() > 2e-7
    assert apart.double().mean() < 0.01  # a rounding can turn the sign of a gradient near 0
    one = torchattacks.FGSM(net, *arguments[:1])(x, y), theirs.FGSM(net, *arguments[:1])(x, y)
    torch.testing.assert_close(*one, rtol=0, atol=2e-7)


@each_seed
@pytest.mark.parametrize(("name", "options"), [("CW", {"c": 10.0, "steps": 40}), ("DeepFool", {})])
def test_cw_and_deepfool_change_as_many_labels_at_no_greater_distance(name, options, seed):
    net, x = conv_net(seed), images(16, seed)
    y = predictions(net, x)
    ours = getattr(torchattacks, name)(net, **options)(x, y)
    other = getattr(theirs, name)(net, **options)(x, y)
    far, other_far = ((at - x).flatten(1).norm(dim=1) for at in (ours, other))
    lost, other_lost = (predictions(net, at) != y for at in (ours, other))
    assert lost.sum() >= other_lost.sum() > 0
    both = lost & other_lost
    assert far[both].mean() <= 1.1 * other_far[both].mean()


def test_square_takes_torchattacks_arguments():
    atk = torchattacks.Square(conv_net(0), "L2", 0.5, 77, 1, 0.3)
    assert atk.attack == poise_attacks.square(norm="l2", eps=0.5, queries=77, p_init=0.3)


def test_cw_tries_the_one_constant_that_is_given():
    attack = torchattacks.CW(conv_net(0), c=2, kappa=0.5, steps=7, lr=0.02).attack
    assert attack == poise_attacks.cw(initial=2, confidence=0.5, steps=7, lr=0.02, binary_search=1)
    assert torchattacks.CW(conv_net(0), binary_search=4).attack.binary_search == 4


def test_alpha_is_the_step_of_every_attack_that_has_one():
    for spelled, name in torchattacks.NAMES.items():
        takes = signature(getattr(torchattacks, spelled)).parameters
        assert ("alpha" in takes) == ("step" in signature(ATTACKS[name]).parameters)
        assert "step" not in takes
    assert torchattacks.Adaptive(conv_net(0), alpha=0.011).attack.step == 0.011
    assert torchattacks.Adaptive(conv_net(0)).attack == poise_attacks.adaptive()


@pytest.mark.parametrize("name", ATTACKS)
def test_torchattacks_shape_is_the_attack_itself_against_the_right_label(name):
    net, x = conv_net(1), images(6, 1)
    y = wrong(net, x)
    spelled = next(s for s, n in torchattacks.NAMES.items() if n == name)
    make = getattr(torchattacks, spelled)
    atk = make(net, **called(name, short(name)))
    labels = y if atk.attack.uses_labels else None
    expected = atk.attack(net, x, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atk(x, y), expected)


@pytest.mark.parametrize("name", KEEPING)
def test_labels_that_the_model_has_wrong_do_not_lead_astray(name):
    net, x = conv_net(2), images(8, 2)
    y = wrong(net, x)
    label = predictions(net, x)
    moved = getattr(advlib, name)(net, x, y, eps=0.05, **short(name))
    assert torch.equal(predictions(net, moved), label)
    change = confidence(net, moved, label) - confidence(net, x, label)
    assert (change if name == "overconfidence" else -change).mean() > 0.005  # the prediction's moved
    assert torch.equal(moved, getattr(advlib, name)(net, x, eps=0.05, **short(name)))


def test_random_starts_go_on_from_call_to_call_and_begin_at_the_seed():
    net, x = conv_net(0), images(4)
    y, state = predictions(net, x), torch.get_rng_state()
    first, again, other = (torchattacks.PGD(net, steps=1, seed=seed) for seed in (0, 0, 1))
    a, b = first(x, y), first(x, y)
    assert torch.equal(a, again(x, y)) and torch.equal(b, again(x, y))
    assert not torch.equal(a, b) and not torch.equal(a, other(x, y))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("PGD", {"epsilon": 0.1}, "PGD: .*epsilon.*takes model, eps, alpha, steps, random_start"),
        ("PGD", {"step": 0.1}, "PGD: .*step"),
        ("FGSM", {"alpha": 0.1}, "FGSM: .*alpha"),
        ("Square", {"loss": "ce"}, "Square knows loss='margin' only, got 'ce'"),
        ("Square", {"n_restarts": 2}, "Square knows n_restarts=1 only, got 2"),
        ("PGD", {"eps": 8}, "eps must be a number in"),
    ],
)
def test_torchattacks_shape_refuses(name, options, message):
    with pytest.raises(InputError, match=message):
        getattr(torchattacks, name)(conv_net(0), **options)


@pytest.mark.parametrize("module", [torchattacks, advlib, compat_foolbox])
def test_an_unknown_attack_is_no_attribute(module):
    with pytest.raises(AttributeError, match=r"no attack 'Nothing'"):
        module.Nothing  # noqa: B018
    assert "adaptive" in {name.lower() for name in dir(module)}


@pytest.mark.parametrize("name", ["pgd", "adaptive"])
def test_labels_that_are_none_are_refused_also_where_unused(name):
    net, x = conv_net(0), images(3)
    for y in (torch.zeros(2, dtype=torch.long), torch.zeros(3)):
        with pytest.raises(InputError, match="y must"):
            torchattacks.Adaptive(net)(x, y)
        with pytest.raises(InputError, match="y must"):
            getattr(advlib, name)(net, x, y)


# adv-lib


@pytest.mark.parametrize("name", ATTACKS)
def test_advlib_shape(name):
    net, x = conv_net(3), images(4, 3)
    y = wrong(net, x)
    function = partial(getattr(advlib, name), **short(name))
    attack = ATTACKS[name](**short(name))
    expected = attack(net, x, y if attack.uses_labels else None, generator=torch.Generator().manual_seed(0))
    assert torch.equal(function(net, x, y, targeted=False), expected)
    assert torch.equal(function(model=net, inputs=x, labels=y, targeted=False), expected)


def test_advlib_options():
    net, x = conv_net(0), images(4)
    y = predictions(net, x)
    named = advlib.pgd(net, x, y, eps=0.1, random_start=True, seed=5)
    assert torch.equal(advlib.pgd(net, x, y, **{"ε": 0.1}, random_start=True, seed=5), named)
    assert not torch.equal(advlib.pgd(net, x, y, eps=0.1, random_start=True), named)
    with pytest.raises(InputError, match=r"an option of pgd must be one of eps, .*got 'alpha'"):
        advlib.pgd(net, x, y, alpha=0.1)


@pytest.mark.parametrize("name", ATTACKS)
def test_targeted_is_refused_before_any_forward(name):
    net = Counting(conv_net(0))
    with pytest.raises(InputError, match="targeted must be False"):
        getattr(advlib, name)(net, images(2), torch.tensor([0, 1]), targeted=True)
    assert net.forwards == 0


# foolbox

EPSILONS = [0.0, 0.01, 0.05]


def shapes(result):
    """How many and of what shapes the three parts of a foolbox result are."""
    raw, clipped, success = result

    def whole(part):
        return [tuple(t.shape) for t in part] if isinstance(part, list) else tuple(part.shape)

    return whole(raw), whole(clipped), tuple(success.shape), success.dtype


@pytest.mark.parametrize("epsilons", [EPSILONS, [0.03], 0.03])
@pytest.mark.parametrize("bounded", [False, True])
def test_foolbox_shapes_and_outputs_are_foolbox_own(epsilons, bounded):
    net, x = conv_net(0), images(8)
    y = predictions(net, x)
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    other = foolbox.attacks.LinfPGD(steps=5, abs_stepsize=0.01, random_start=False)(
        model, x, y, epsilons=epsilons
    )
    ours = compat_foolbox.pgd(steps=5, step=0.01)(model if bounded else net, x, y, epsilons=epsilons)
    assert shapes(ours) == shapes(other)
    assert torch.equal(ours[2], other[2])
    for mine, its in zip(ours[1], other[1], strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", compat_foolbox.NAMES)
def test_every_attack_in_foolbox_shape_keeps_its_budgets(name):
    net, x = conv_net(1), images(6, 1)
    y = wrong(net, x)
    raw, clipped, success = getattr(compat_foolbox, name)(threshold=0.6, **short(name))(
        net, x, y, epsilons=EPSILONS
    )
    order = 2 if name in ("cw", "deepfool") else torch.inf
    for eps, far, at in zip(EPSILONS, raw, clipped, strict=True):
        length = torch.linalg.vector_norm((at - x).double().flatten(1), ord=order, dim=1)
        assert (length <= eps * (1 + 1e-6) + 1e-6).all()
        assert name in ("cw", "deepfool") or torch.equal(far, at)
    assert success.shape == (3, 6) and success.dtype == torch.bool


@pytest.mark.parametrize("kind", [numpy.array, torch.tensor, tuple])
def test_budgets_may_be_an_array(kind):
    x, y = images(4), torch.tensor([0, 1, 2, 3])
    raw, clipped, success = compat_foolbox.pgd(steps=1)(conv_net(), x, y, epsilons=kind([0.01, 0.02]))
    assert len(raw) == len(clipped) == 2 and success.shape == (2, 4)


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_the_nearest_point_is_looked_for_once_and_clipped(name):
    net, x = Counting(conv_net(0)), images(6)
    y = predictions(net.net, x)
    attack = getattr(compat_foolbox, name)(steps=30, **({"binary_search": 2} if name == "cw" else {}))
    raw, clipped, success = attack(net, x, y, epsilons=[None, 0.01, 5.0])
    many = net.backwards
    assert torch.equal(attack(net, x, y, epsilons=None)[1], clipped[0])
    assert net.backwards == 2 * many
    assert all(torch.equal(at, raw[0]) for at in raw) and torch.equal(clipped[0], raw[0])
    assert (clipped[1] - x).flatten(1).norm(dim=1).max() <= 0.0100001
    torch.testing.assert_close(clipped[2], raw[0], rtol=0, atol=1e-6)
    assert torch.equal(success[0], predictions(net.net, raw[0]) != y) and success[0].any()


class Towards(torch.nn.Module):
    """Three classes; the first's confidence grows with the pixel, which no label depends on below 1."""

    def forward(self, x):
        lead = 0.1 + 2 * x.flatten(1)[:, :1]  # p_0 = e^lead / (e^lead + 2)
        return torch.cat([lead, torch.zeros_like(lead), torch.zeros_like(lead)], dim=1) + 1


# One pixel at .5: p_0 = e^1.1 / (e^1.1 + 2) = .600; at .2 it is e^.5 / (e^.5 + 2) = .452, at .8 .732.
PIXELS = torch.full((2, 1, 1, 1), 0.5)
RIGHT_WRONG = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("name", "threshold", "success"),
    [
        ("adaptive", 0.5, [True, True]),  # .452 < .5, and the label is kept: what is right plays no part
        ("adaptive", 0.45, [False, False]),
        ("overconfidence", 0.7, [True, True]),  # .732 ≥ .7
        ("overconfidence", 0.75, [False, False]),
        ("max_miscalibration", 0.7, [True, True]),  # right down to .452, wrong up to .732
        ("max_miscalibration", 0.45, [False, True]),
        ("max_miscalibration", 0.75, [True, False]),
        ("pgd", 0.5, [False, True]),  # the label stays 0: lost for none, and wrong before for the second
    ],
)
def test_success_is_what_it_says(name, threshold, success):
    attack = getattr(compat_foolbox, name)(threshold=threshold)
    assert attack(Towards(), PIXELS, RIGHT_WRONG, epsilons=[0.3])[2].tolist() == [success]


def test_a_lost_label_is_no_success_of_an_attack_that_keeps_it():
    net, x = conv_net(0), images(16)
    attack = compat_foolbox.dropout(threshold=0.99, accept="always")  # nothing stops it at the boundary
    _, moved, success = attack(net, x, predictions(net, x), epsilons=0.2)
    kept = predictions(net, moved) == predictions(net, x)
    assert not kept.all() and not (success & ~kept).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: compat_foolbox.adaptive(eps=0.1), "eps must be left out"),
        (lambda x, y: compat_foolbox.adaptive(alpha=0.1), "an option of adaptive"),
        (lambda x, y: compat_foolbox.adaptive(threshold=2.0), "threshold must be a number in"),
        (lambda x, y: compat_foolbox.pgd()(conv_net(0), x, y, epsilons=[]), "at least one budget"),
        (lambda x, y: compat_foolbox.pgd()(conv_net(0), x, y, epsilons=None), "needs a budget"),
        (lambda x, y: compat_foolbox.auto(threshold=0.2)(conv_net(0), x, y, epsilons=0.1), r"above 0\.2"),
        (
            lambda x, y: compat_foolbox.auto()(conv_net(0, classes=2), x, y, epsilons=0.1),
            r"above 0\.5 for a model of 2 classes",
        ),
        (
            lambda x, y: compat_foolbox.pgd()(
                foolbox.PyTorchModel(conv_net(0), bounds=(-1, 1)), x, y, epsilons=0.1
            ),
            r"bounds must be \(0, 1\)",
        ),
    ],
)
def test_foolbox_shape_refuses(call, message):
    with pytest.raises(InputError, match=message):
        call(images(2), torch.tensor([0, 1]))


def test_attacks_on_a_distance_are_not_in_foolbox_shape():
    assert set(ATTACKS) - set(compat_foolbox.NAMES) == {
        "target_confidence",
        "random_confidence",
        "square_random_confidence",
    }
