"""Refusals: every message says what is wrong and what to do."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets import conv_net, fitted, images
from poise import InputError
from poise.attacks import ATTACKS, build, confsmooth, fgsm
from poise.threat import BALLS

every_attack = pytest.mark.parametrize("name", ATTACKS)
# The first attack of every loop: the others of its class check nothing of their own.
LOOPS = list({type(make()): name for name, make in reversed(ATTACKS.items())}.values())
BLACK_BOX = [
    k for k, factory in ATTACKS.items() if {"queries", "tries"} & {*inspect.signature(factory).parameters}
]
NO_MATTER = ("no gradient", "detached", "an array")  # to an attack that asks for outputs alone
LABELS = torch.tensor([0, 1, 2, 3])


def refusal(call, *args):
    """The text of the refusal."""
    with pytest.raises(InputError) as caught:
        call(*args)
    return str(caught.value)


def mentions(text, *words):
    missing = [word for word in words if word not in text]
    assert not missing, f"{text!r} lacks {missing}"


def with_pixel(value, dtype=torch.float32):
    x = images(4, dtype=dtype)
    x[2, 1, 3, 3] = value
    return x


def without_gradient(x):
    with torch.no_grad():
        return conv_net()(x)


class Wrapped(nn.Module):
    """A net whose output is an object that holds its logits, as Hugging Face's."""

    def forward(self, x):
        return SimpleNamespace(logits=conv_net()(x))


IMAGES = {
    "normalised": (
        lambda: 2 * images(4) - 1,
        ["[0, 1]", "[-1, 1]", "normalisation inside the model", "eps"],
    ),
    "bytes as floats": (lambda: 255 * images(4), ["[0, 1]", "255", "normalisation inside the model"]),
    "just above 1": (lambda: with_pixel(1 + 1e-5), ["[0, 1]", "normalisation inside the model"]),
    "just below 0": (lambda: with_pixel(-1e-5), ["[0, 1]", "normalisation inside the model"]),
    "NaN": (lambda: with_pixel(math.nan), ["NaN or infinite", "how the images were loaded"]),
    "infinite": (lambda: with_pixel(math.inf), ["NaN or infinite", "how the images were loaded"]),
    "minus infinite": (lambda: with_pixel(-math.inf), ["NaN or infinite", "how the images were loaded"]),
    "bytes": (lambda: (255 * images(4)).byte(), ["floating point", "torch.uint8", "x.float() / 255"]),
    "integers": (lambda: images(4).long(), ["floating point", "torch.int64", "x.float() / 255"]),
    "booleans": (lambda: images(4) > 0.5, ["floating point", "torch.bool"]),
    "one image": (lambda: images(4)[0], ["four dimensions", "(3, 8, 8)", "x.unsqueeze(0)"]),
    "flat images": (lambda: images(4).flatten(1), ["four dimensions", "(4, 192)"]),
    "video": (lambda: images(4)[None], ["four dimensions", "(1, 4, 3, 8, 8)"]),
    "an array": (lambda: images(4).numpy(), ["torch.Tensor", "ndarray"]),
    "a list": (lambda: [images(4)], ["torch.Tensor", "list"]),
}

LABELLINGS = {
    "too few": (torch.tensor([0, 1]), ["one label an image", "(4,)", "(2,)"]),
    "one for all": (torch.tensor(1), ["one label an image", "(4,)", "()"]),
    "a column": (LABELS[:, None], ["one label an image", "(4,)", "(4, 1)"]),
    "one-hot": (torch.eye(5)[LABELS].long(), ["one label an image", "(4,)", "(4, 5)"]),
    "floats": (LABELS.float(), ["whole-number labels", "int64", "torch.float32"]),
    "booleans": (LABELS > 1, ["whole-number labels", "int64", "torch.bool"]),
    "a list": ([0, 1, 2, 3], ["whole-number labels", "int64", "list"]),
    "a class too many": (torch.tensor([0, 1, 2, 5]), ["[0, 4]", "5 classes", "[0, 5]"]),
    "negative": (torch.tensor([0, 1, 2, -1]), ["[0, 4]", "[-1, 2]"]),
    "torch's ignored index": (torch.tensor([0, 1, 2, -100]), ["[0, 4]", "[-100, 2]"]),
}

MODELS = {
    "probabilities": (
        lambda x: conv_net()(x).softmax(dim=1),
        ["probabilities", "logits", "take its softmax away"],
    ),
    "NaN": (lambda x: conv_net()(x) * math.nan, ["NaN or infinite logits", "look at its weights"]),
    "infinite": (lambda x: conv_net()(x) / 0, ["NaN or infinite logits", "look at its weights"]),
    "overflow in half precision": (
        lambda x: (1e6 * conv_net()(x)).half(),
        ["NaN or infinite logits", "look at its weights"],
    ),
    "one logit": (lambda x: conv_net()(x)[:, :1], ["(n, classes)", "(4, 1)"]),
    "one number an image": (lambda x: conv_net()(x)[:, 0], ["(n, classes)", "(4,)"]),
    "feature maps": (lambda x: conv_net()(x)[:, :, None, None], ["(n, classes)", "(4, 5, 1, 1)"]),
    "another batch": (lambda x: conv_net()(x)[:2], ["(n, classes)", "(4, at least 2)", "(2, 5)"]),
    "an object with logits": (
        Wrapped(),
        ["tensor of logits", "SimpleNamespace", "lambda x: model(x).logits"],
    ),
    "a tuple": (lambda x: (conv_net()(x),), ["tensor of logits", "tuple", "wrap it"]),
    "an array": (lambda x: conv_net()(x).detach().numpy(), ["tensor of logits", "ndarray"]),
    "no gradient": (without_gradient, ["no gradient", "no_grad", "black-box"]),
    "detached": (lambda x: conv_net()(x.detach()).detach(), ["no gradient", "detach", "black-box"]),
}


def test_the_loops_are_all_there():
    assert {type(ATTACKS[name]()) for name in LOOPS} == {type(make()) for make in ATTACKS.values()}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind):
    make, words = IMAGES[kind]
    for name in LOOPS:
        mentions(refusal(build(name), conv_net(), make()), *words)


@pytest.mark.parametrize("kind", LABELLINGS)
def test_labels(kind):
    y, words = LABELLINGS[kind]
    for name in LOOPS:
        mentions(refusal(build(name), conv_net(), images(4), y), *words)


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind):
    model, words = MODELS[kind]
    for name in LOOPS:
        attack, expected = fitted(ATTACKS, name, queries=3), words
        if name in BLACK_BOX and kind in NO_MATTER:
            assert attack(model, images(4)).shape == images(4).shape
            continue
        if name in BLACK_BOX and name != "noise" and kind == "probabilities":
            expected = ["probabilities", "outputs='probabilities'"]
        mentions(refusal(attack, model, images(4)), *expected)


@every_attack
def test_what_a_round_trip_through_a_normalisation_leaves_is_accepted_and_clamped(name):
    for steps, value in ((2, -2.98e-8), (2, 1 + 1.2e-7), (2, -1e-6), (0, -1e-6), (0, 1 + 1.2e-7)):
        x_adv = fitted(ATTACKS, name, steps=steps, queries=4 * steps)(conv_net(), with_pixel(value))
        assert ((x_adv >= 0) & (x_adv <= 1)).all(), (steps, value)


@every_attack
def test_no_steps_or_no_images_are_no_excuse(name):
    for make in ("normalised", "NaN", "bytes", "one image"):
        refusal(fitted(ATTACKS, name, steps=0), conv_net(), IMAGES[make][0]())
    refusal(build(name), conv_net(), images(0), LABELS)


@every_attack
def test_logits_of_rows_that_happen_to_sum_to_one_are_not_probabilities_if_one_is_negative(name):
    logits = torch.tensor([[1.5, -0.5]])
    x = images(4)
    moving = fitted(ATTACKS, name, steps=2, queries=4)(
        lambda x: logits + x.flatten(1)[:, :2] * torch.tensor([1.0, -1.0]), x
    )
    assert moving.shape == x.shape


def turning_nan(after):
    """A model whose logits are NaN from that forward on."""
    calls = []

    def model(x):
        calls.append(None)
        return conv_net()(x) * (math.nan if len(calls) > after else 1.0)

    return model


@every_attack
def test_logits_that_become_nan_during_the_attack(name):
    mentions(
        refusal(fitted(ATTACKS, name, steps=3, queries=4), turning_nan(after=1), images(4)),
        "NaN or infinite",
        "look at its weights",  # some look at x twice, and say it of the model: no image is named
    )


def root(x):
    """Finite logits, but a gradient of 0 · ∞ = NaN at every black pixel: a well-known trap of where."""
    return conv_net()(torch.where(x > 0, x.sqrt(), torch.zeros_like(x)))


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        (name, norm)
        for name in LOOPS
        for norm in BALLS
        if name not in BLACK_BOX and (name, norm) != ("deepfool", "l1")
    ],
)
def test_gradients_that_are_nan_although_the_logits_are_finite(name, norm):
    x = images(4).clamp_min(0.1)
    x[1, :, :4] = 0
    assert torch.isfinite(root(x)).all()
    mentions(
        refusal(fitted(ATTACKS, name, norm=norm, steps=1), root, x), "gradients", "NaN", "1 of 4 images"
    )


def test_gradients_that_become_nan_during_the_attack():
    x = images(4).clamp_min(0.01)  # after one step of .05 some pixels are black
    text = refusal(build("pgd", eps=0.1, step=0.05, steps=5), root, x)
    mentions(text, "gradients", "NaN", "4 of 4 images", "look at its weights")


@every_attack
def test_gradients_whose_sum_overflows_are_not_infinite(name):
    """192 gradients of up to 400 sum to more than 65504, the most that half precision holds."""
    x = (0.25 + 0.5 * images(4)).half()
    weight = torch.full(x.shape[1:], 800.0).half()

    def steep(x):
        lead = ((x - x.detach()) * weight).flatten(1).sum(dim=1)
        return torch.stack([lead, -lead], dim=1)

    assert fitted(ATTACKS, name, steps=1, queries=4)(steep, x).shape == x.shape


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("confsmoth", "confsmooth"), ("PDG", "pgd"), ("adaptiv", "adaptive"), ("droput", "dropout")],
)
def test_an_unknown_attack_is_refused_with_the_nearest_known(wrong, right):
    text = refusal(build, wrong)
    mentions(text, f"unknown attack {wrong!r}", "did you mean", right, *ATTACKS)
    assert right in text.split("(known")[0]


def test_an_attack_like_no_other_is_refused_with_the_known_ones():
    mentions(refusal(build, "qqqq"), "unknown attack 'qqqq'", "nothing like it", *ATTACKS)


@pytest.mark.parametrize("wrong", [None, 3, fgsm])
def test_an_attack_s_name_that_is_no_text_is_refused(wrong):
    mentions(refusal(build, wrong), "attack", "pgd")


@pytest.mark.parametrize("name", ["confsmooth", "ConfSmooth", "CONFSMOOTH"])
def test_the_case_of_a_name_does_not_matter(name):
    assert build(name) == confsmooth()


def test_the_last_bits_of_a_single_two_class_image_do_not_make_its_logits_probabilities():
    """One row of two logits sums to 1 within 1e-3 about once in 3,000; probabilities do to 1e-6."""
    logits = torch.tensor([[0.3, 0.7004]])

    def model(x):
        two = x.flatten(1)[:, :2]
        return logits + (two - two.detach())  # the same numbers, with a gradient

    x = images(1)
    assert build("pgd", steps=1)(model, x).shape == x.shape


def test_a_refusal_is_a_value_error():
    assert issubclass(InputError, ValueError)
