"""The bracket in every run that has both sides: certified <= attacked, or an error that names the image."""

from dataclasses import dataclass, replace

import polars as pl
import pytest
import torch
from torch import nn

from poise import InputError, Records, attacks, certify, curves, evaluate
from poise.certify import Interval, UnsoundError
from poise.cli import main
from poise.diagnostics import record_findings


def net(scale=1.0):
    """Three classes of four pixels, wide apart."""
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(scale * torch.tensor([[2.0, 0, 0, 1], [0, 2, 1, 0], [0, 0, 2, -1]]))
        linear.bias.zero_()
    return nn.Sequential(nn.Flatten(), linear).eval()


def batches(n=12, size=5):
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return [(part, net()(part).argmax(dim=1)) for part in x.split(size)]


@dataclass(frozen=True)
class Claims:
    """A certificate that claims the same of every image, moved on one of them."""

    lower: float
    upper: float
    eps: float = 0.1
    norm: str = "linf"

    def __call__(self, model, x):
        ones = torch.ones(len(x), dtype=torch.float64)
        return Interval(self.lower * ones, self.upper * ones, ones.bool())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.2)])
@pytest.mark.parametrize("make", [certify.ibp, certify.crown])
def test_records_hold_the_certificate_s_bounds(make, norm, eps):
    certificate = make(eps=eps, norm=norm)
    records = evaluate(net(), batches(), attacks.auto(eps=eps, norm=norm), certificate=certificate)
    x = torch.cat([x for x, _ in batches()])
    expected = certificate(net(), x)
    torch.testing.assert_close(records.lower, expected.lower, rtol=0, atol=1e-12)
    torch.testing.assert_close(records.upper, expected.upper, rtol=0, atol=1e-12)
    attacked = records.attacked.amax(dim=1)
    assert (records.lower <= attacked + 1e-5).all()


def test_a_bound_above_what_was_found_is_an_error_that_names_the_image():
    with pytest.raises(UnsoundError, match=r"image 0: the attack found .* outside the certified \[0.99"):
        evaluate(net(), batches(), attacks.auto(eps=0.1), certificate=Claims(0.99, 1.0))


def test_a_bound_below_what_was_found_is_one_too():
    with pytest.raises(UnsoundError, match="image 0"):
        evaluate(net(20.0), batches(), attacks.overconfidence(eps=0.1), certificate=Claims(0.0, 0.4))


def test_images_are_counted_over_batches():
    class Late(Claims):
        def __call__(self, model, x):
            bounds = super().__call__(model, x)
            return bounds if len(x) == 5 else bounds._replace(lower=bounds.lower + 1)  # the last batch

    with pytest.raises(UnsoundError, match="image 10"):
        evaluate(net(), batches(), attacks.auto(eps=0.1), certificate=Late(0.0, 1.0))


@pytest.mark.parametrize(("eps", "norm"), [(0.05, "linf"), (0.1, "l2")])
def test_an_attack_that_leaves_the_certificate_s_ball_is_refused(eps, norm):
    with pytest.raises(InputError, match=r"moved image \d+ by .* holds within"):
        evaluate(net(), batches(), attacks.auto(eps=0.2), certificate=Claims(0, 1, eps=eps, norm=norm))


def test_bounds_come_back_from_a_frame():
    before = evaluate(net(), batches(), attacks.fgsm(eps=0.1), certificate=certify.ibp(eps=0.1))
    after = Records.from_frame(before.frame(), before.x, before.x_adv)
    assert torch.equal(after.lower, before.lower) and torch.equal(after.upper, before.upper)
    plain = evaluate(net(), batches(), attacks.fgsm(eps=0.1))
    assert not plain.certified and "lower" not in plain.frame().columns
    assert not Records.from_frame(plain.frame(), plain.x, plain.x_adv).certified


def test_records_with_and_without_bounds_are_not_joined():
    part = evaluate(net(), batches(), attacks.fgsm(eps=0.1), certificate=certify.ibp(eps=0.1))
    with pytest.raises(InputError, match="cannot be joined"):
        Records.join([part, replace(part, lower=None, upper=None)])


def test_a_certificate_that_promises_nothing_is_a_finding():
    attack = attacks.fgsm(eps=0.1)
    records = evaluate(net(), batches(), attack, certificate=Claims(1 / 3, 1.0))
    [finding] = [f for f in record_findings({"fgsm": records}, {"fgsm": attack}) if f.kind == "vacuous"]
    assert finding.share == 1 and "100.0% of the images" in finding.seen and "ibp" in finding.advice
    tight = evaluate(net(3.0), batches(), attacks.fgsm(eps=0.01), certificate=certify.crown(eps=0.01))
    assert not [f for f in record_findings({"fgsm": tight}, {"fgsm": attack}) if f.kind == "vacuous"]


def test_the_certified_curve_falls_and_ends_at_exact_values():
    x = torch.cat([x for x, _ in batches()])
    curve = curves.certified_curve(net(), x, certify.crown, [0.0, 0.05, 0.1, 1.0], threshold=0.5)
    clean = net()(x).softmax(dim=1).amax(dim=1)
    assert curve[0] == float((clean >= 0.5).double().mean()) > 0
    assert (curve.diff() <= 0).all() and curve[-1] == 0
    frame = pl.DataFrame({"eps": [0.0, 0.05, 0.1, 1.0], "share": curve.numpy()})
    assert frame["share"].max() <= 1


def test_bounds_of_the_same_images_are_worked_out_once():
    calls = []

    class Counted(Claims):
        def __call__(self, model, x):
            calls.append(len(x))
            return super().__call__(model, x)

    certificate = certify.remembered(Counted(0.0, 1.0))
    for attack in (attacks.fgsm(eps=0.1), attacks.auto(eps=0.1)):
        assert evaluate(net(), batches(), attack, certificate=certificate).certified
    assert calls == [5, 5, 2]


@pytest.mark.parametrize(
    ("flags", "hint"),
    [([], "give --eps"), (["--eps", "0.1", "--attacks", "auto", "cw"], "leave it out")],
)
def test_a_certificate_needs_a_budget(flags, hint, capsys, tmp_path):
    line = (
        f"evaluate --model lenet --weights pretrained --data digits --out {tmp_path / 'run'} --certify ibp"
    )
    with pytest.raises(SystemExit):
        main([*line.split(), *flags])
    assert hint in capsys.readouterr().err


def test_evaluate_certify_leaves_bounds_in_the_records(tmp_path):
    run = tmp_path / "trained"
    main(f"train --data digits --model lenet --epochs 2 --images 256 --out {run}".split())
    out = tmp_path / "run"
    line = f"evaluate --model {run} --data digits --images 4 --eps 0.001 --certify ibp --out {out}"
    main([*line.split(), "--attacks", "pgd_bisect", "fgsm"])
    for name in ("pgd_bisect", "fgsm"):
        frame = pl.read_parquet(out / name / "records.parquet")
        assert (frame["lower"] <= frame["confidence_attacked"] + 1e-5).all()
        assert frame["lower"].max() > 0.1
