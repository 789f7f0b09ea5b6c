"""Every law of `poise check`: poise's own parts keep it, and a part that breaks it is told of it."""

import json

import pytest

from poise import InputError
from poise.cli import main
from poise.contracts import check_part, kind_of

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from poise.attacks import Aim

def lower(model, x):
    at = x.clone().requires_grad_()
    with torch.enable_grad():
        z = model(at)
        loss = z.logsumexp(dim=1) - z.amax(dim=1)
        moved = (x + 0.005 * torch.autograd.grad(loss.sum(), at)[0].sign()).clamp(0, 1).detach()
        kept = model(moved).argmax(dim=1) == z.argmax(dim=1)
        return torch.where(kept[:, None, None, None], moved, x)

class Own:
    aim = Aim(labels="prediction", keeps_label=True, wants="lower")
    eps = 0.01

    def __call__(self, model, x, y=None, *, generator=None):
        return lower(model, x)

def stripes(n, seed):
    y = torch.arange(n) % 2
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return [(x, y)]

def linear(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""
ATTACKS = {  # the body of an attack, and the beginning of the only law that it breaks
    "return lower(model, x)": None,
    "return lower(model, x).double()": "it gives finite images in [0, 1]",
    "return (x + 4 * (lower(model, x) - x)).clamp(0, 1)": "it stays within its eps",
    "model.train(); return lower(model, x)": "it gives the model back",
    "a = lower(model, x); x.copy_(a); return a": "it leaves the images",
    "torch.rand(1); return lower(model, x)": "it draws from the generator",
    "a = lower(model, x); return a if len(x) > 1 else x.clone()": "it attacks an image alone",
    "a = lower(model, x); return a if y is None else x.clone()": "without y",
    "return (2 * x - lower(model, x)).clamp(0, 1)": "it moves the confidence",
    "return lower(model, x) if torch.is_grad_enabled() else x.clone()": "it works where gradients",
    "return lower(model, x) if len(x) else None": "it takes a batch",
}
DEFENSES = {
    "return F.cross_entropy(model(x), y)": None,
    "return F.cross_entropy(model(x), y, reduction='none')": "its loss is one finite number",
    "return F.cross_entropy(model(x) * torch.tensor([1.0, 1, 1, 1, 0]), y)": None,
    "return F.cross_entropy(model[:-1](x).flatten(1)[:, :5], y)": "its gradient",
    "model.eval(); return F.cross_entropy(model(x), y)": "it gives the model back",
    "x.mul_(0.5); return F.cross_entropy(model(x), y)": "it leaves the images",
    "return F.cross_entropy(model(x + 0.1 * torch.rand_like(x)), y)": "it draws from the generator",
    "return F.cross_entropy(model(x), y) if len(x) > 2 else 1 / 0": "it takes a last batch",
}
MODELS = {
    "return linear(shape, classes)": None,
    "return nn.Sequential(linear(shape, classes), nn.Softmax(1))": "it answers every image",
    "return linear(shape, 5)": "it has as many logits",
    "return nn.Sequential(nn.Threshold(2.0, 0.5), linear(shape, classes))": "it lets gradients",
    "n = linear(shape, classes); torch.manual_seed(id(n)); n[1].reset_parameters(); return n": "it begins",
}
DATA = {
    "return stripes(8, len(split))": None,
    "return stripes(8, 0)": "no test image is among",
    "return stripes(8, torch.seed())": "it gives the same images",
    "return stripes(8, 1) if split == 'test' else [(2 * x, y) for x, y in stripes(8, 2)]": "its training",
}
HEADS = {
    "attacks": "class Part(Own):\n    def __call__(self, model, x, y=None, *, generator=None):\n        ",
    "defenses": "def Part(model, x, y, generator=None):\n    ",
    "models": "def Part(*, classes, shape):\n    ",
    "data": "def Part(*, split):\n    ",
}
CASES = [
    (kind, body, broken)
    for kind, bodies in zip(HEADS, (ATTACKS, DEFENSES, MODELS, DATA), strict=True)
    for body, broken in bodies.items()
]


@pytest.mark.parametrize(("kind", "body", "broken"), CASES, ids=[body[:60] for _, body, _ in CASES])
def test_who_breaks_a_law_is_told_of_that_one(kind, body, broken, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(HEAD + HEADS[kind] + body + "\n")
    assert kind_of(f"{file}:Part") == kind
    failed = {law.owed: law.seen for law in check_part(f"{file}:Part")}
    failed = {owed: seen for owed, seen in failed.items() if seen}
    if broken is None:
        assert not failed, failed
    else:
        assert any(owed.startswith(broken) for owed in failed), failed
    assert all("\n" not in seen for seen in failed.values())


@pytest.mark.parametrize("name", ["confsmooth", "pgd", "square_underconfidence", "uat-smooth", "trades"])
def test_our_own_keep_them(name):
    options = {"steps": 3} if name != "square_underconfidence" else {"queries": 20}
    assert not [law for law in check_part(name, options=options) if not law.holds]
    assert not [law for law in check_part("small-cnn", shape=(1, 8, 8)) if not law.holds]


def test_the_command_says_it_in_words_or_as_json(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(HEAD + HEADS["defenses"] + "model.eval(); return F.cross_entropy(model(x), y)\n")
    with pytest.raises(SystemExit) as stop:
        main(["check", f"{file}:Part"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.count("\n") == 1 and "does not keep 1 of 6 laws" in said.err
    assert "FAILS  it gives the model back: modes, weights, gradients, hooks: modes\n" in said.out
    main(["check", f"{file}:Own", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "attacks" and all(law["holds"] for law in found["laws"])


def test_what_is_no_part_is_refused(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(HEAD)
    with pytest.raises(InputError, match="looks like no part: name --kind"):
        kind_of(f"{file}:lower")
    with pytest.raises(InputError, match="is no part that is known here: name --kind"):
        kind_of("nothing")
