"""Fast paths: another way to the same attack, with the model itself as the judge. Nothing here is timed."""

import copy
import gc
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import Counting, Linear, confidence, conv_net, fitted, images, predictions
from poise import InputError
from poise.attacks import ATTACKS, adaptive, auto, confsmooth, dropout_accumulated, pgd, worst_case
from poise.fast import Fast, accelerated
from poise.fast import attack as walking
from poise.fast import prepare as preparing
from poise.recalibration import Scale

EPS = 0.06
PATHS = ("float32", "bf16")


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """bfloat16 and channels_last count as faster on every machine."""

    def seconds(net, x, logits):
        return (1.0 if net.dtype == torch.bfloat16 else 2.0) - 0.5 * (net.layout == "channels_last")

    monkeypatch.setattr(preparing, "time_step", seconds)


class Residual(nn.Module):
    """Blocks with a shortcut; `how` makes the second BatchNorm foldable or not."""

    def __init__(self, how="plain"):
        super().__init__()
        self.how = how
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.inner = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        out = self.conv(x)
        y = x + self.inner(out)
        if self.how == "norm twice":
            y = self.inner(y)
        if self.how == "block twice":
            y = F.relu(y) + self.inner(self.conv(y))
        if self.how == "used elsewhere":
            y = y + out
        return 4 * self.head(F.relu(y).flatten(1))


def residual(how="plain", seed=0):
    """A net whose running statistics and affine parameters are far from 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Residual(how)
        for norm in (net.norm, net.inner):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)
    net.eval()
    with torch.no_grad():
        net.head.bias.sub_(net(images(64)).mean(dim=0) / 4)
    return net


NETS = {
    "batch norm": lambda: copy.deepcopy(conv_net(0)),
    "sharper": lambda: copy.deepcopy(conv_net(1, scale=40.0)),
    **{
        how: lambda how=how: residual(how)
        for how in ("plain", "norm twice", "block twice", "used elsewhere")
    },
}


def prepared(net, x, *, low=False, layout="auto"):
    return preparing.prepare(net, x, net(x).detach(), low=low, layout=layout)


def lent(monkeypatch, nets):
    """Every attack from now on walks on these copies."""
    monkeypatch.setattr(walking, "copy_for", lambda *_, **__: nets)


def kinds(net, kind):
    return sum(isinstance(module, kind) for module in net.net.modules())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", PATHS)
@pytest.mark.parametrize("attack", [confsmooth, adaptive, auto])
def test_labels_hold_confidence_falls_and_the_ball_holds(name, precision, attack):
    net, x = NETS[name](), images(24, 3)
    y = predictions(net, x)
    x_adv = accelerated(attack(eps=EPS, steps=10), precision=precision)(net, x)
    assert torch.equal(torch.cat([predictions(net, part) for part in x_adv.split(7)]), y)
    before, after = confidence(net, x, y), confidence(net, x_adv, y)
    assert (after <= before + 1e-6).all() and after.mean() < before.mean() - 0.02
    assert (x_adv - x).abs().amax() <= EPS + 1e-6 and x_adv.amin() >= 0 and x_adv.amax() <= 1


@pytest.mark.parametrize("precision", PATHS)
def test_the_users_model_is_left_as_it_was(precision):
    net = residual().train()
    net.inner.eval()
    seen = []
    net.head.register_forward_hook(lambda *_: seen.append(1))
    before, modules = copy.deepcopy(net.state_dict()), list(net.modules())
    rng = torch.get_rng_state()
    accelerated(confsmooth(eps=EPS, steps=4), precision=precision)(net, images(6))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert [m.training for m in net.modules()] == [True, True, True, True, False, True]
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert sum(len(m._forward_hooks) for m in net.modules()) == 1
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize(
    ("how", "left"), [("plain", 0), ("norm twice", 1), ("block twice", 1), ("used elsewhere", 2)]
)
def test_batch_norms_are_folded_only_where_that_is_right(how, left):
    net, x = residual(how), images(5)
    ready = prepared(net, x)
    assert kinds(ready.full, nn.BatchNorm2d) == left
    torch.testing.assert_close(ready.full(x), net(x), rtol=1e-4, atol=1e-4)
    assert any("folded" in note for note in ready.notes) == (how == "used elsewhere")


def test_modules_with_hooks_are_not_folded():
    net, x = residual(), images(5)
    net.stem.register_forward_hook(lambda _, given, out: out * 2)
    ready = prepared(net, x)
    assert kinds(ready.full, nn.BatchNorm2d) == 1
    torch.testing.assert_close(ready.full(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_copy_that_is_wrong_is_found_out_by_the_model_itself(monkeypatch):
    net, x = residual(), images(40)
    y = predictions(net, x)
    wrong = residual(seed=5)
    lent(monkeypatch, preparing.Prepared(wrong, None, ()))
    ready = Fast(attack=confsmooth(eps=0.2, steps=5))
    raw = ready.attack(wrong, x, y)
    assert (predictions(net, raw) != y).any()
    x_adv = ready(net, x)
    assert torch.equal(predictions(net, x_adv), y)
    assert (confidence(net, x_adv, y) <= confidence(net, x, y)).all()
    moved = (x_adv - x).flatten(1).abs().amax(dim=1)
    assert ((predictions(net, raw) != y) & (moved > 0)).any()  # back towards x, not always all the way


def test_an_attack_that_takes_every_step_and_returns_the_best_is_checked_too(monkeypatch):
    net, x = residual(), images(40)
    y = predictions(net, x)
    near = copy.deepcopy(net)
    near.head.weight.data += 0.02 * torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    lent(monkeypatch, preparing.Prepared(near, None, ()))
    ready = Fast(attack=dropout_accumulated(eps=0.2, steps=5, keep_fraction=0.95, keep="best"))
    assert (predictions(net, ready.attack(near, x, y)) != y).any()
    assert torch.equal(predictions(net, ready(net, x)), y)


@pytest.mark.parametrize("precision", PATHS)
def test_strength_is_that_of_the_plain_attack(precision):
    worst = {"float32": 0.002, "bf16": 0.02}[precision]  # tiny nets far from those of the benchmark
    off = []
    for seed in range(4):
        net, x = residual(seed=seed), images(32, seed)
        y = predictions(net, x)
        for make in (confsmooth, auto):
            attack = make(eps=EPS, steps=20)
            fast = accelerated(attack, precision=precision)(net, x)
            off.append(confidence(net, fast, y).mean() - confidence(net, attack(net, x), y).mean())
    assert torch.stack(off).mean() <= worst, off


def test_the_first_leg_is_in_bfloat16_and_the_second_in_float32(monkeypatch):
    net, x = residual(), images(6)
    nets = prepared(net, x, low=True)
    seen = []

    def noted(part):
        def call(x):
            seen.append(part.dtype)
            return part(x)

        return call

    lent(monkeypatch, replace(nets, full=noted(nets.full), low=noted(nets.low)))
    Fast(attack=confsmooth(eps=EPS, steps=10), precision="bf16", share=0.6)(net, x)
    assert seen.count(torch.bfloat16) == 7 and seen[:7] == [torch.bfloat16] * 7
    assert seen.count(torch.float32) in (6, 6 + walking.HALVINGS)  # a check, its way back, four steps + 1


def count_preparations(monkeypatch):
    made, prepare = [], preparing.prepare
    monkeypatch.setattr(preparing, "prepare", lambda *a, **k: made.append(1) or prepare(*a, **k))
    return made


def test_prepared_once_a_shape_and_anew_when_the_weights_change(monkeypatch):
    made, net, x = count_preparations(monkeypatch), Counting(residual()), images(8)
    fast = accelerated(confsmooth(eps=EPS, steps=5))
    fast(net, x)
    net.forwards = net.backwards = 0
    fast(net, x)
    assert (len(made), net.backwards) == (1, 0)
    assert net.forwards in (2, 2 + walking.HALVINGS)
    fast(net, images(3))
    assert len(made) == 2
    for parameter in net.parameters():
        parameter.data.mul_(-1.01)  # behind autograd's back: no version counter moves
    after = fast(net, x)
    assert len(made) == 3
    net.net.norm.running_mean.add_(1)
    last = fast(net, x)
    assert len(made) == 4
    assert torch.equal(last, fast(copy.deepcopy(net), x)) and not torch.equal(last, after)


def test_what_is_prepared_goes_with_the_model(monkeypatch):
    fast, net = accelerated(confsmooth(eps=EPS, steps=2)), copy.deepcopy(conv_net(0))
    before = len(preparing._kept)
    for n in range(1, 8):
        fast(net, images(n))
    assert len(preparing._kept) == before + 1
    assert len(preparing._kept[net]) == preparing.MOST
    with fast.ready() as ready:
        assert ready.notes(net) == ("layout: channels_last",)
    del net
    gc.collect()
    assert len(preparing._kept) == before


def test_prepared_anew_for_another_model_with_the_same_weights():
    x = images(6)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 5))
    kinked = nn.Sequential(*smooth[:2], nn.ReLU(), smooth[3])
    swapped = nn.Sequential(*smooth)
    for attack in [confsmooth(eps=EPS, steps=5), adaptive(eps=EPS, steps=5)]:
        fast = accelerated(attack)
        assert not torch.equal(fast(smooth, x), fast(kinked, x))
        swapped[2] = nn.Tanh()
        assert torch.equal(fast(swapped, x), fast(smooth, x))
        swapped[2] = nn.ReLU()
        assert torch.equal(fast(swapped, x), fast(kinked, x))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_layout_that_is_named_needs_no_stopwatch(monkeypatch, layout):
    monkeypatch.setattr(preparing, "time_step", lambda *_: 0.0)
    net, x = residual(), images(4)
    fast = accelerated(confsmooth(eps=EPS, steps=2), precision="bf16", layout=layout)
    fast(net, x)
    assert fast.notes(net) == (f"layout: {layout}", f"bf16 layout: {layout}")
    assert f"layout='{layout}'" in repr(fast)


class Own(nn.Module):
    """A net that a copy of cannot be made, or cannot be run."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = copy.deepcopy(conv_net(0)), how
        self.scale = nn.Parameter(torch.ones(())) * 2 if how == "a tensor with a graph" else 2
        self.lock = threading.Lock() if how == "a lock" else None
        self.known = {id(self.net): 1}

    def forward(self, x):
        if self.how == "a table of its modules":
            return self.known[id(self.net)] * self.net(x)
        assert self.how != "a claim about itself" or id(self.net) in self.known
        return self.scale * self.net(x)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("a tensor with a graph", "RuntimeError"),
        ("a lock", "TypeError"),
        ("a table of its modules", "KeyError"),
        ("a claim about itself", "AssertionError"),
    ],
)
def test_what_cannot_be_copied_is_used_as_it_is(how, error):
    net, x = Own(how), images(4)
    ready = prepared(net, x, low=True)
    assert ready.full is ready.low is None
    assert [note.split(":")[:2] for note in ready.notes] == [["copied", f" {error}"]]


def test_a_copy_that_fails_in_bfloat16_alone_is_used_in_float32():
    class Wide(nn.Module):
        def forward(self, x):
            if x.dtype == torch.bfloat16:
                raise ValueError("no half precision")
            return x

    net, x = nn.Sequential(Wide(), copy.deepcopy(conv_net(0))), images(4)
    ready = prepared(net, x, low=True)
    assert ready.full is not None and ready.low is None
    assert "bf16: ValueError: no half precision" in ready.notes


def test_convolutions_are_in_the_faster_layout():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten())
    ready = prepared(net, images(4))
    assert ready.full.net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[0].weight.is_contiguous()


def test_what_cannot_be_prepared_is_used_as_it_is():
    net, x = residual(), images(4)
    fast = accelerated(adaptive(eps=EPS, steps=3))
    assert torch.equal(predictions(net, fast(lambda x: net(x), x)), predictions(net, x))
    assert "no nn.Module" in fast.notes(lambda x: net(x))[0]
    linear = Linear(torch.ones(3, 8, 8), -96.0)  # no parameters, no convolutions
    assert torch.equal(predictions(linear, fast(linear, x)), predictions(linear, x))


def test_attacks_against_the_true_label_may_change_it():
    net, x = residual(), images(16)
    y = predictions(net, x)
    for precision in PATHS:
        attack = pgd(eps=0.2, steps=10)
        fast = accelerated(attack, precision=precision)
        assert fast.uses_labels
        flipped = predictions(net, fast(net, x, y)) != y
        assert flipped.sum() >= (predictions(net, attack(net, x, y)) != y).sum() - 1 > 0


@pytest.mark.parametrize("precision", PATHS)
def test_an_attack_that_lets_go_of_the_label_may_do_so(precision):
    net, x = residual(), images(32)
    y = predictions(net, x)
    attack = dropout_accumulated(eps=0.2, steps=10, keep_fraction=0.95)
    plain = (predictions(net, attack(net, x)) == y).sum()
    fast = (predictions(net, accelerated(attack, precision=precision)(net, x)) == y).sum()
    assert plain < 24 and abs(fast - plain) <= 4
    best = accelerated(replace(attack, keep="best"), precision=precision)
    assert torch.equal(predictions(net, best(net, x)), y)


def test_the_low_leg_of_an_attack_that_lets_go_of_the_label_is_not_pulled_back(monkeypatch):
    net, x = residual(), images(32)
    nets = prepared(net, x, low=True)
    seen = []

    def noted(at):
        seen.append(at)
        return nets.full(at)

    lent(monkeypatch, replace(nets, full=noted))
    Fast(attack=dropout_accumulated(eps=0.2, steps=10, keep_fraction=0.95), precision="bf16")(net, x)
    assert len(seen) == 7  # six steps and the point they begin at: no check between the legs


def test_a_recalibrated_model_is_prepared_whatever_its_temperature_is_kept_in():
    net, x = nn.Sequential(residual(), Scale(0.5)).eval(), images(5)
    assert net[1].k.dtype == torch.float64
    ready = prepared(net, x, low=True)
    assert kinds(ready.full, nn.BatchNorm2d) == kinds(ready.low, nn.BatchNorm2d) == 0
    assert ready.notes == ("layout: channels_last", "bf16 layout: channels_last")
    torch.testing.assert_close(ready.full(x), net(x), rtol=1e-4, atol=1e-4)
    mixed = nn.Sequential(residual(), nn.Linear(5, 5).double())
    mixed[1].register_forward_pre_hook(lambda _, given: (given[0].double(),))
    ready = prepared(mixed.eval(), x)
    assert ready.full is None
    assert ready.notes == (
        "Sequential has parameters of torch.float64, the images are torch.float32: used as it is",
    )


@pytest.mark.parametrize("name", ["max_miscalibration", "dropout", "ace", "overconfidence", "square"])
def test_every_kind_of_attack_goes_in_float32(name):
    net, x = residual(), images(8)
    y = predictions(net, x)
    attack = accelerated(fitted(ATTACKS, name, eps=EPS, steps=5))
    x_adv = attack(net, x, y)
    assert x_adv.shape == x.shape and (x_adv - x).abs().amax() <= EPS + 1e-6
    if name not in ("dropout", "square"):
        assert torch.equal(predictions(net, x_adv), y)


def test_refusals():
    with pytest.raises(InputError, match="steps and a ball"):
        Fast(attack=worst_case([auto()]), precision="bf16")
    with pytest.raises(InputError, match="precision must be one of float32, bf16"):
        Fast(attack=auto(), precision="half")
    with pytest.raises(InputError, match="layout must be one of auto, contiguous, channels_last"):
        Fast(attack=auto(), layout="packed")
    with pytest.raises(InputError, match="share"):
        Fast(attack=auto(), share=2.0)
    assert accelerated(auto())(residual(), images(0)).shape == (0, 3, 8, 8)
