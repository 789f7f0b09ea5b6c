"""Black boxes on the command line: models without a gradient, from estimate to report."""

import json

import pytest
import torch

from poise import data
from poise.cli import main
from poise.report import read
from test_models_onnx import linear_onnx

BUILDERS = """
import torch
from torch import nn

w, b = torch.load({weights!r}, weights_only=True)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        with torch.no_grad():
            self.layer.weight.copy_(w.T), self.layer.bias.copy_(b)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Detached(Linear):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Rounded(Linear):
    def forward(self, x):
        return super().forward(torch.from_numpy((255 * x.detach()).round().numpy() / 255))


class Constant(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1) @ w + b


class Strict(Linear):
    def forward(self, x):
        assert not x.requires_grad, "this model has no gradient"
        return super().forward(x)


def plain(classes, shape):
    return Linear()


def detached(classes, shape):
    return Detached()


def rounded(classes, shape):
    return Rounded()


def constant(classes, shape):
    return Constant()


def strict(classes, shape):
    return Strict()


def frozen(classes, shape):
    return torch.jit.freeze(torch.jit.script(Linear().eval()))


def quantised(classes, shape):
    return torch.ao.quantization.quantize_dynamic(Linear().eval(), {{nn.Linear}}, dtype=torch.qint8)
"""
KINDS = ("onnx", "plain", "detached", "rounded", "constant", "strict", "frozen", "quantised")


@pytest.fixture(scope="module")
def templates():
    """The linear classifier by class means of the training digits: weights (64, 10) and biases (10,)."""
    (x, y), *_ = data.load("digits", split="train", batch_size=10_000)
    means = torch.stack([x[y == k].flatten(1).mean(dim=0) for k in range(10)])
    return means.T.contiguous(), -means.square().sum(dim=1) / 2


@pytest.fixture(scope="module")
def name_of(templates, tmp_path_factory):
    folder = tmp_path_factory.mktemp("black-box")
    w, b = templates
    torch.save((w, b), folder / "weights.pt")
    file = folder / "nets.py"
    file.write_text(BUILDERS.format(weights=str(folder / "weights.pt")))
    onnx = linear_onnx(folder / "net.onnx", w.numpy(), b.numpy(), shape=(1, 8, 8))
    return lambda kind: onnx if kind == "onnx" else f"{file}:{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_black_box_is_audited_by_black_box_attacks(kind, name_of, templates, tmp_path, capsys):
    out = tmp_path / "out"
    attacks = ("square", "square_underconfidence")
    flags = ["--data", "digits", "--images", "60", "--eps", "0.1", "--option"]
    flags += [f"{name}.queries=40" for name in attacks]
    main(["evaluate", "--model", name_of(kind), *flags, "--out", str(out), "--attacks", *attacks])
    printed = capsys.readouterr().out
    assert "forwards and 0 backwards an image" in printed
    parts = {part.name: part.records for part in read(out).attacked}
    assert set(parts) == set(attacks) and (out / "report.html").stat().st_size > 10_000
    w, b = templates
    (x, _), *_ = data.load("digits", images=60)
    expected = (x.flatten(1).double() @ w.double() + b.double()).softmax(dim=1)
    for records in parts.values():
        assert torch.allclose(records.clean.double(), expected, atol=0.01 if kind == "quantised" else 2e-3)
    assert parts["square_underconfidence"].kept.all()
    fell = parts["square_underconfidence"].attacked.amax(dim=1) - expected.amax(dim=1)
    assert fell.mean() < -0.001
    assert "findings" in json.loads((out / "job.json").read_text())


@pytest.mark.parametrize("kind", ["onnx", "detached", "constant"])
def test_a_gradient_attack_on_a_black_box_is_refused_in_one_line(kind, name_of, tmp_path, capsys):
    flags = ["--data", "digits", "--images", "20", "--steps", "3", "--attacks", "pgd"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--model", name_of(kind), *flags, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("poise: ") and error.count("\n") == 1
    assert "square" in error or "black-box attack" in error
