"""What certificates read of a model, and what they refuse: by its name and place, never in silence."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import poise
from certify_nets import KINDS, images, random_net
from poise import InputError, models
from poise.certify import Crown, Ibp, crown, ibp
from poise.certify.network import READERS, read


class Body(nn.Module):
    """Convolution, what the test is about, a linear layer."""

    def __init__(self, middle, width=3 * 49):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.middle = middle
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.middle(self.conv(x)).flatten(1))


class Does(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Hidden(torch.autograd.Function):
    """A ReLU that torch's functions do not tell of."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp_min(0)


def branch(x):
    return x if x.sum() > 0 else -x


REFUSED = {
    "sigmoid": nn.Sigmoid(),
    "layer_norm": nn.LayerNorm([7, 7]),
    "gelu": nn.GELU(),
    "softmax": nn.Softmax(dim=1),
    "max_pool2d": nn.MaxPool2d(2, ceil_mode=True, dilation=2),
    "sum": Does(branch),
    "detach": Does(lambda x: x.detach()),
    "data": Does(lambda x: x.data),
    "mul": Does(lambda x: x * x),
    "sub": Does(lambda x: x - F.relu(x)),
    "cat": Does(lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)),
    "round": Does(lambda x: (x * 255).round() / 255),
    "batch_norm": nn.BatchNorm2d(3, track_running_stats=False),
    "pad": Does(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "mean": Does(lambda x: x - x.mean(dim=0)),
    "__getitem__": Does(lambda x: x[:, [2, 1, 0]]),
    "__setitem__": Does(lambda x: x.__setitem__((slice(None), 0), 0.0) or x),
    "linear": Does(lambda x: F.linear(x, torch.eye(7).double())),
    "numpy": Does(lambda x: torch.from_numpy(x.numpy())),
}


@pytest.mark.parametrize("make", [ibp, crown])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_listed_layer_is_refused_by_its_name_and_place(name, make):
    net = Body(nn.Sequential(nn.ReLU(), REFUSED[name])).double()
    with pytest.raises(InputError, match=rf"cannot read {name} in 'middle\.1'") as refusal:
        make(eps=0.1)(net, images(2, 0).float())
    assert "\n" not in str(refusal.value)


def test_what_hides_from_reading_is_refused_too():
    for model, told in [
        (Body(Does(Hidden.apply)), "cannot read clamp_min in 'middle'"),
        (torch.jit.trace(Body(nn.ReLU()), images(1, 0).float()), "do not come from|cannot read|off by"),
        (lambda x: torch.zeros(len(x), 3), "do not come from"),
        (lambda x: torch.tensor(x.flatten(1)[:, :3].tolist()), "tolist|tensor"),
    ]:
        with pytest.raises(InputError, match=told):
            crown(eps=0.1)(model, images(2, 0))


def test_logits_that_hang_on_the_length_of_the_batch_are_found_out():
    net = random_net(0)
    with pytest.raises(InputError, match="off by"):
        ibp(eps=0.1)(lambda x: net(x) + torch.tensor([0.1 * len(x), 0.0]), images(3, 0))


def test_probabilities_are_refused():
    with pytest.raises(InputError, match="softmax"):
        ibp(eps=0.1)(nn.Sequential(Body(nn.ReLU()), nn.Softmax(dim=1)), images(2, 0).float())


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_layers_read_give_the_model_s_logits(kind):
    net, x = random_net(kind), images(5, 1)
    network, _ = read(net, images(2, 9), READERS)
    found = network.boxes(poise.certify.layers.Box(x, x))[-1]
    torch.testing.assert_close(found.lower, net(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.upper, net(x), atol=1e-10, rtol=0)


def test_functions_hooks_dicts_and_float32_models_are_read():
    net, x = random_net(0), images(3, 0).float()
    expected = crown(eps=0.02)(net, x)
    assert torch.equal(crown(eps=0.02)(lambda x: net(x), x.double()).lower, expected.lower)
    assert torch.equal(crown(eps=0.02)(lambda x: {"logits": net(x)}, x.double()).lower, expected.lower)
    hooked = random_net(0)
    hooked[0].register_forward_hook(lambda module, args, output: output + 1.0)
    assert not torch.allclose(crown(eps=0.02)(hooked, x).upper, expected.upper)
    plain = Body(nn.ReLU()).eval()
    torch.testing.assert_close(
        crown(eps=0.0)(plain, x).lower, plain(x).softmax(1).amax(1).detach().double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "name", ["lenet", "lenet5-advertorch", "small-cnn", "certified-cnn", "cifar-resnet20"]
)
def test_models_of_the_table_are_read_and_bounded_by_intervals(name):
    shape = (1, 8, 8) if "lenet" in name else (3, 8, 8)
    torch.manual_seed(0)
    model = models.load(name, shape=shape)
    x = images(2, 0, shape).float()
    own = model(x).softmax(1).amax(1).detach().double()
    found = ibp(eps=0.0)(model, x)
    torch.testing.assert_close(found.lower, own, atol=1e-5, rtol=0)
    found = ibp(eps=1e-4)(model, x)
    assert (found.lower <= own + 1e-6).all() and (found.upper >= own - 1e-6).all()


def test_the_caller_s_model_and_images_are_left_alone():
    model = nn.Sequential(Body(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)))).train()
    model[0].middle[1].eval()
    x = images(3, 0).float()
    before, given = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    with torch.inference_mode():
        found = crown(eps=0.05)(model, x)
    assert model.training and not model[0].middle[1].training and torch.equal(x, given)
    assert all(
        torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items()
    )
    assert not found.lower.requires_grad and found.lower.shape == found.label_kept.shape == (3,)
    assert all(len(column) == 0 for column in crown(eps=0.05)(model, x[:0]))


def test_certificates_are_frozen_values_whose_repr_is_all():
    assert crown(eps=0.1, norm="L2", limit=5) == eval(
        repr(crown(eps=0.1, norm="l2", limit=5)), {"Crown": Crown}
    )
    assert repr(ibp(eps=8 / 255)) == f"Ibp(eps={8 / 255}, norm='linf')" and isinstance(ibp(), Ibp)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ibp().eps = 1.0
    for options, told in [
        ({"eps": -0.1}, "eps.*-0.1"),
        ({"eps": 1.5}, "eps.*1.5"),
        ({"eps": float("nan")}, "eps"),
        ({"norm": "l1"}, "norm of a certificate 'l1'"),
    ]:
        for make in (ibp, crown):
            with pytest.raises(InputError, match=told):
                make(**options)
    with pytest.raises(InputError, match="limit"):
        crown(limit=-1)
    assert crown(eps=3.0, norm="l2").eps == 3.0


def test_the_cost_is_known_before_and_a_run_above_the_limit_is_refused_with_it():
    """Per image 2 rows × the work of each neuron that intervals leave unsure, and 2·3 + 1 of the logits.

    A row of the logits: 3 + 3·16 (Linear) + 16 (ReLU) + 16 + 16·98 (Linear) + 98 + 98 entries; a neuron's
    row before the second ReLU: 4 + 4·16 + 16 + 16 + 16·98 + 98 + 98.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(98, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    x = images(3, 0)
    cost = crown(eps=1.0).cost(net, x)
    neuron = 4 + 4 * 16 + 16 + 16 + 16 * 98 + 98 + 98
    logit = 3 + 3 * 4 + 4 + neuron
    assert cost.tolist() == [7 * logit + 2 * 4 * neuron] * 3  # the first layer's intervals are exact
    with pytest.raises(InputError, match=r"multiply-adds an image.*limit is 1e\+02.*ibp"):
        crown(eps=1.0, limit=100)(net, x)
    crown(eps=1.0, limit=float(cost.mean()))(net, x)
    resnet = models.load("cifar-resnet20", shape=(3, 32, 32))
    with pytest.raises(InputError, match="multiply-adds an image"):
        crown(eps=8 / 255)(resnet, torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_rows_in_small_pieces_and_windows_give_what_rows_on_whole_images_give(kind, monkeypatch):
    """Memory for few numbers at once: windows place by place, images one by one."""
    net, x = random_net(kind), images(2, 0)
    whole = crown(eps=0.05)(net, x)
    monkeypatch.setattr("poise.certify.bounds.ENTRIES", 2000)
    monkeypatch.setattr("poise.certify.certificate.ENTRIES", 700)
    pieces = crown(eps=0.05)(net, x)
    torch.testing.assert_close(pieces.lower, whole.lower, atol=1e-12, rtol=0)
    torch.testing.assert_close(pieces.upper, whole.upper, atol=1e-12, rtol=0)
