"""What callers hand in: models that return more, less or other than logits, and batches of all kinds."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import poise
from nets import conv_net, images
from poise import InputError, attacks, checks, evaluate, models
from poise.modes import LogitsAlone
from poise.recalibration import logits_of

X, Y = images(8), torch.arange(8) % 5
NET = conv_net()
PGD = attacks.pgd(eps=0.03, steps=2)


class Returning(nn.Module):
    """A net whose answer is put into something else."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = conv_net(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


TAKEN = {
    "an output with logits": lambda z: SimpleNamespace(logits=z, hidden_states=z.exp()),
    "a dict with logits": lambda z: {"logits": z, "features": z.exp()},
    "a dict of one": lambda z: {"out": z, "name": "x"},
    "a tuple of one": lambda z: (z,),
    "a list of one": lambda z: [z, None],
    "itself": lambda z: z,
}
UNCLEAR = {
    "a tuple of two": (lambda z: (z, z.exp()), r"got tuple of 0 \(4, 5\), 1 \(4, 5\).*model\(x\)\[0\]"),
    "a dict of two": (lambda z: {"out": z, "aux": z}, r"got dict of 'out' .*model\(x\)\['out'\]"),
    "nothing": (lambda z: None, "got NoneType: wrap it"),
    "text": (lambda z: "cat", "got str: wrap it"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_logits_are_taken_out_of_what_a_model_returns(kind):
    model = Returning(TAKEN[kind])
    records, plain = evaluate(model, [(X, Y)], PGD), evaluate(NET, [(X, Y)], PGD)
    assert torch.equal(records.clean, plain.clean) and torch.equal(records.attacked, plain.attacked)
    assert torch.equal(logits_of(model, [(X, Y)])[0], logits_of(NET, [(X, Y)])[0])
    assert torch.equal(LogitsAlone(model)(X), NET(X))


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_could_be_several_things_is_refused(kind):
    wrap, message = UNCLEAR[kind]
    with pytest.raises(InputError, match=message):
        evaluate(Returning(wrap), [(X, Y)], PGD)


@pytest.mark.parametrize("name", ["pgd", "confsmooth", "auto", "square", "deepfool", "cw"])
@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind != "itself"])
def test_an_attack_alone_refuses_what_is_no_tensor_in_our_words(kind, name):
    with pytest.raises(InputError, match="must return a tensor of logits"):
        attacks.ATTACKS[name](eps=0.03)(Returning(TAKEN[kind]), X)


# outputs that are no logits


def sigmoid(x):
    return NET(x).sigmoid()


def test_a_sigmoids_outputs_are_refused_with_a_way_out_that_works():
    with pytest.raises(InputError, match=r"all 40 outputs .* lie in \[0, 1\].*TwoClasses\(model, column=k"):
        evaluate(sigmoid, [(X, Y)], PGD)
    with pytest.raises(InputError, match="as after a sigmoid"):
        PGD(sigmoid, X)
    one = models.TwoClasses(sigmoid, column=2, sigmoid=True)
    found = evaluate(one, [(X, Y % 2)], PGD)
    torch.testing.assert_close(found.clean[:, 1], NET(X).sigmoid()[:, 2].detach(), rtol=0, atol=1e-5)
    shifted = evaluate(lambda x: sigmoid(x) - 1, [(X, Y)], PGD)
    assert torch.allclose(shifted.clean, sigmoid(X).softmax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_probabilities_are_told_in_every_precision(dtype, classes):
    logits = 4 * torch.randn(16, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = logits.softmax(dim=1).to(dtype)
    for given in (probs, probs.float()):  # also where a model works in half precision inside
        with pytest.raises(InputError, match="returns probabilities"):
            checks.check_logits(given, 16)
    checks.check_logits(logits.log_softmax(dim=1).to(dtype), 16)
    checks.check_logits(logits.to(dtype), 16)


@pytest.mark.parametrize("outputs", [torch.zeros(64, 2), torch.full((64, 2), 0.2), torch.rand(3, 5)])
def test_small_logits_are_left_in_peace(outputs):
    """Those of nets that have not learnt, and of too few images to tell."""
    checks.check_logits(outputs, len(outputs))


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_an_image_is_refused_with_a_way_out_that_works(squeeze):
    def one(x):
        z = NET(x)[:, :1]
        return z[:, 0] if squeeze else z

    with pytest.raises(InputError, match=r"poise\.models\.TwoClasses\(model\)"):
        evaluate(one, [(X, Y % 2)], PGD)
    records = evaluate(models.TwoClasses(one), [(X, Y % 2)], PGD)
    torch.testing.assert_close(records.clean[:, 1], NET(X)[:, 0].sigmoid().detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_answers_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(InputError, match="floating-point logits, got"):
        evaluate(lambda x: NET(x).to(dtype), [(X, Y)], PGD)


def test_several_right_classes_by_hugging_faces_word_are_refused():
    net = Returning(TAKEN["an output with logits"])
    net.config = SimpleNamespace(problem_type="multi_label_classification")
    with pytest.raises(InputError, match=r"'multi_label_classification'.*TwoClasses\(model, column=k\)"):
        evaluate(net, [(X, Y)], PGD)
    one = evaluate(models.TwoClasses(net, column=3), [(X, Y % 2)], PGD)
    torch.testing.assert_close(one.clean[:, 1], NET(X)[:, 3].sigmoid().detach(), rtol=0, atol=1e-6)
    net.config.problem_type = "single_label_classification"
    evaluate(net, [(X, Y)], PGD)


# graphs


@pytest.mark.parametrize("name", ["pgd", "confsmooth", "auto", "deepfool", "cw", "apgd_ce"])
@pytest.mark.parametrize(
    "cut",
    [lambda x: x.detach(), lambda x: (255 * x).to(torch.uint8).float() / 255, lambda x: x.data],
    ids=["detached", "quantised", "data"],
)
def test_a_cut_before_weights_that_train_is_refused(name, cut):
    net = conv_net()
    assert next(net.parameters()).requires_grad
    with pytest.raises(InputError, match="carries no gradient with respect to x"):
        attacks.ATTACKS[name](eps=0.03)(lambda x: net(cut(x)), X)


@pytest.mark.parametrize("frozen", [False, True])
def test_scripted_and_frozen_nets_are_evaluated(frozen):
    scripted = torch.jit.script(conv_net())
    if frozen:
        scripted = torch.jit.freeze(scripted)
    records = evaluate(scripted, [(X, Y)], PGD)
    assert torch.allclose(records.clean, evaluate(NET, [(X, Y)], PGD).clean, atol=1e-5)
    PGD(scripted, X)


# images that do not fit


def test_images_of_other_colours_are_answered_with_the_shape_and_the_cause():
    for run in (lambda: evaluate(NET, [(X[:, :1], Y)], PGD), lambda: logits_of(NET, [(X[:, :1], Y)])):
        with pytest.raises(
            InputError, match=r"fails on images of shape \(\d, 1, 8, 8\).*3 channels"
        ) as refusal:
            run()
        assert isinstance(refusal.value.__cause__, RuntimeError)


# batches


@pytest.mark.parametrize(
    "batch",
    [(X, Y, torch.zeros(8, 3)), [X, Y], (X, Y, {"id": 3}, "more"), (X, Y[:, None]), (X, Y.int()[:, None])],
    ids=["three", "list", "four", "labels (n, 1)", "int32 labels (n, 1)"],
)
def test_batches_of_more_parts_and_labels_in_a_column_are_taken(batch):
    records = evaluate(NET, [batch], PGD)
    assert torch.equal(records.y, Y) and records.clean.shape == (8, 5)
    assert torch.equal(logits_of(NET, [batch])[1], Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "got a Tensor"),
        ((X,), "got a tuple of 1"),
        ({"image": X, "label": Y}, r"got a dict of 2.*b\['image'\], b\['label'\]"),
        ((X, Y[:, None].repeat(1, 5)), r"shape \(8,\), got shape \(8, 5\)"),
        ((X, [0] * 8), "whole-number labels"),
    ],
    ids=["images", "one", "dict", "one-hot", "list"],
)
def test_other_batches_are_refused(batch, message):
    with pytest.raises(InputError, match=message):
        evaluate(NET, [batch], PGD)


def test_it_is_part_of_the_package():
    assert poise.models.TwoClasses is models.TwoClasses
