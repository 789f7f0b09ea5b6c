"""Recalibration maps against closed forms, scikit-learn and the equations that their optima satisfy."""

import math
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from sklearn.calibration import _SigmoidCalibration, _TemperatureScaling
from sklearn.isotonic import IsotonicRegression

from nets import conv_net, images
from poise import metrics
from poise import recalibration as rc
from poise.checks import InputError


def sample(n=4000, k=4, seed=0, sharp=2.5):
    """Logits `sharp` times too large for their labels, which are drawn from softmax(z)."""
    generator = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.multinomial(z.softmax(dim=1), 1, generator=generator)[:, 0]
    return sharp * z, y


def test_temperature_of_one_lead_is_the_log_odds():
    z = torch.tensor([[3.0, 0.0]] * 10)
    y = torch.tensor([0] * 9 + [1])
    assert float(rc.temperature(z, y).k) == pytest.approx(math.log(9) / 3, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_temperature_agrees_with_scikit_learn_at_any_scale(scale):
    z, y = sample()
    theirs = _TemperatureScaling().fit(z.numpy(), y.numpy()).beta_
    assert float(rc.temperature(z * scale, y).k) * scale == pytest.approx(float(theirs), rel=1e-4)


def test_temperature_undoes_the_scale_that_the_logits_were_made_with():
    found = [2.5 * float(rc.temperature(*sample(seed=seed)).k) for seed in range(20)]
    mean = sum(found) / len(found)
    error = (sum((f - mean) ** 2 for f in found) / 19 / 20) ** 0.5
    assert abs(mean - 1) < 4 * error and error < 0.02  # four standard errors: one false alarm in 16,000


def test_platt_agrees_with_scikit_learn():
    z, y = sample(k=2)
    theirs = _SigmoidCalibration().fit((z[:, 1] - z[:, 0]).numpy(), y.numpy())
    ours = rc.platt(z, y)(z).softmax(dim=1)[:, 1]
    expected = theirs.predict((z[:, 1] - z[:, 0]).numpy())
    assert torch.allclose(ours, torch.from_numpy(expected).to(ours.dtype), atol=1e-4)


def test_platt_is_for_two_classes():
    with pytest.raises(InputError, match=r"for 2 classes, got 4: use vector"):
        rc.platt(*sample())


def test_vector_scaling_meets_the_equations_of_its_optimum():
    z, y = sample()
    z = z * torch.tensor([1.0, 0.5, 2.0, 1.0]) + torch.tensor([0.0, 2.0, -1.0, 0.0])
    off = rc.vector(z, y)(z).softmax(dim=1) - torch.nn.functional.one_hot(y, 4)
    assert off.mean(dim=0).abs().max() < 1e-4  # d/db: each class as likely as it is frequent
    assert (off * z).mean(dim=0).abs().max() < 1e-3  # d/dw


def test_vector_scaling_undoes_what_was_done_to_each_class():
    z, y = sample(n=40_000, sharp=1.0)
    bent = z * torch.tensor([1.0, 0.5, 2.0, 1.0]) + torch.tensor([0.0, 2.0, -1.0, 0.0])
    assert (rc.vector(bent, y)(bent).softmax(dim=1) - z.softmax(dim=1)).abs().max() < 0.05


def test_isotonic_follows_scikit_learn_before_normalisation():
    z, y = sample(n=500)
    p = z.softmax(dim=1)
    hot = torch.nn.functional.one_hot(y, 4)
    theirs = IsotonicRegression(y_min=0, y_max=1).fit(p.flatten().numpy(), hot.flatten().numpy())
    expected = torch.from_numpy(theirs.predict(p.flatten().numpy())).view_as(p) + 1e-3 * p
    expected = expected / expected.sum(dim=1, keepdim=True)
    assert torch.allclose(rc.isotonic(z, y)(z).softmax(dim=1), expected.to(z.dtype), atol=2e-3)


@pytest.mark.parametrize("name", list(rc.RECALIBRATIONS))
@pytest.mark.parametrize("seed", range(3))
def test_every_map_calibrates_fresh_answers(name, seed):
    """ECE falls below a third on answers that the map was not fitted to."""
    k = 2 if name == "platt" else 4
    last = rc.RECALIBRATIONS[name](*sample(seed=seed, k=k))
    z, y = sample(n=20_000, seed=100 + seed, k=k)
    before, after = metrics.ece(z.softmax(dim=1), y), metrics.ece(last(z).softmax(dim=1), y)
    assert after < before / 3


SHAPES = {"over": 2.5, "under": 0.4, "calibrated": 1.0, "flat": 1.0}


def shaped(shape, k, n, seed):
    """Logits of a shape of miscalibration, and the probabilities that their labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    width = 0.3 if shape == "flat" else 1.5  # flat: all answers nearly as likely
    z = width * torch.randn(n, k, generator=generator, dtype=torch.float64)
    p = z.softmax(dim=1)
    return SHAPES[shape] * z, p, torch.multinomial(p, 1, generator=generator)[:, 0]


@cache
def errors_of(name, shape, k, seeds=40):
    """Mean and root mean square of (confidence − P(right)) on fresh answers, each a seed's."""
    bias, wide = [], []
    for seed in range(seeds):
        z, _, y = shaped(shape, k, 1000, seed)
        fresh, true, _ = shaped(shape, k, 1000, 1000 + seed)
        confidence, label = rc.RECALIBRATIONS[name](z, y)(fresh).softmax(dim=1).max(dim=1)
        off = confidence - true.gather(1, label[:, None])[:, 0]
        bias.append(float(off.mean()))
        wide.append(float(off.square().mean().sqrt()))
    return np.array(bias), np.array(wide)


@pytest.mark.parametrize("k", [2, 4, 10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["temperature", "spline"])
def test_the_mean_confidence_is_the_accuracy_on_fresh_answers(name, shape, k):
    """The bias is within 4 standard errors of 0 (a false alarm in 16,000 for a cell) and .003."""
    bias, _ = errors_of(name, shape, k)
    assert abs(bias.mean()) < 0.003 + 4 * bias.std(ddof=1) / len(bias) ** 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_platt_and_isotonic_have_no_bias_with_two_classes(shape):
    for name in ("platt", "isotonic"):
        bias, _ = errors_of(name, shape, 2)
        assert abs(bias.mean()) < 0.003 + 4 * bias.std(ddof=1) / len(bias) ** 0.5


@pytest.mark.parametrize("k", [2, 10])
@pytest.mark.parametrize("shape", ["over", "under", "calibrated"])
def test_the_spline_is_as_near_the_truth_as_the_published_formula(shape, k):
    """Gupta et al.'s least squares, written again in B-splines: the natural ones are those whose
    second derivative is 0 at both ends."""
    ours, theirs, apart = [], [], []
    for seed in range(40):
        z, _, y = shaped(shape, k, 1000, seed)
        fresh, true, _ = shaped(shape, k, 4000, 1000 + seed)
        confidence, label = fresh.softmax(dim=1).max(dim=1)
        truth = true.gather(1, label[:, None])[:, 0].numpy()
        published = published_spline(z, y, confidence.numpy())
        mapped = rc.spline(z, y)(fresh).softmax(dim=1).max(dim=1).values.numpy()
        ours.append(((mapped - truth) ** 2).mean() ** 0.5)
        theirs.append(((published - truth) ** 2).mean() ** 0.5)
        apart.append(abs(mapped - published).mean())
    assert np.mean(ours) < np.mean(theirs) + 0.002
    assert np.mean(apart) < 0.02


def published_spline(z, y, confidence, knots=6):
    s, label = z.softmax(dim=1).max(dim=1)
    order = s.argsort()
    s, right = s[order].numpy(), (label == y)[order].double().numpy()
    t = np.linspace(0, 1, len(s))
    inner = np.linspace(0, 1, knots)
    nodes = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    count = len(nodes) - 4
    basis = BSpline(nodes, np.eye(count), 3)
    ends = basis(np.array([0.0, 1.0]), nu=2)
    natural = np.linalg.svd(ends)[2][2:].T  # the coefficients with γ'' = 0 at both ends
    gap = (right - s).cumsum() / len(s)
    c = natural @ np.linalg.lstsq(basis(t) @ natural, gap, rcond=None)[0]
    return np.interp(confidence, s, np.clip(s + basis(t, nu=1) @ c, 0, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [4, 10])
def test_the_spline_is_nearer_to_calibration_than_isotonic_where_classes_are_many(shape, k):
    """|mean bias| of the spline is no larger than isotonic's, to within two standard errors."""
    (spline, _), (isotonic, _) = errors_of("spline", shape, k), errors_of("isotonic", shape, k)
    error = (spline - isotonic).std(ddof=1) / len(spline) ** 0.5
    assert abs(spline.mean()) < abs(isotonic.mean()) + 4 * error


def test_the_spline_gives_the_accuracy_below_the_next_class():
    """Nine tenths sure between two of three classes, right half the time: the confidence is .5."""
    generator = torch.Generator().manual_seed(0)
    p = 0.55 + 0.02 * torch.rand(4000, generator=generator, dtype=torch.float64)
    z = torch.stack([p, 0.99 - p, torch.full_like(p, 0.01)], dim=1).log()
    y = torch.multinomial(torch.tensor([0.38, 0.31, 0.31]), 4000, True, generator=generator)
    after = rc.spline(z, y)(z).softmax(dim=1)
    assert (after.argmax(dim=1) == 0).all()
    assert float(after[:, 0].mean()) == pytest.approx(float((y == 0).double().mean()), abs=2e-3)


def test_equal_confidences_are_mapped_alike_in_any_order_of_the_images():
    z = torch.tensor([[1.0, 0.0]] * 100 + [[2.0, 0.0]] * 100)
    y = torch.tensor([0] * 60 + [1] * 40 + [0] * 90 + [1] * 10)
    turned = torch.cat([y[:100].flip(0), y[100:].flip(0)])
    after = [rc.spline(z, labels)(z).softmax(dim=1)[:, 0] for labels in (y, turned)]
    assert torch.equal(*after)
    assert float(after[0].mean()) == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("name", ["temperature", "isotonic", "spline"])
def test_the_answer_stays(name):
    z, y = sample(n=300)
    fresh, _ = sample(n=20_000, seed=7)
    first, second = fresh.softmax(dim=1).topk(2).values.unbind(dim=1)
    fresh = fresh[first - second > 1e-4]
    after = rc.RECALIBRATIONS[name](z, y)(fresh.float())
    assert torch.equal(after.argmax(dim=1), fresh.argmax(dim=1))


@pytest.mark.parametrize("name", ["temperature", "vector", "isotonic", "spline"])
def test_a_recalibrated_model_can_be_attacked_and_keeps_its_gradient(name):
    net = conv_net()
    x = images(24, 3)
    z = net(x).detach()
    y = torch.multinomial((0.3 * z).softmax(dim=1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    model = rc.Recalibrated(net, rc.RECALIBRATIONS[name](z, y)).eval()
    x = x.requires_grad_()
    slope = torch.autograd.grad(model(x).log_softmax(dim=1).amax(dim=1).sum(), x)[0]
    assert slope.isfinite().all() and (slope != 0).any()


def test_maps_are_stored_with_the_model():
    net = rc.Recalibrated(conv_net(), rc.Scale(0.25))
    other = rc.Recalibrated(conv_net(), rc.Scale(1.0))
    other.load_state_dict(net.state_dict())
    assert float(other.last.k) == 0.25


def test_k_for_confidence_meets_the_mean():
    z, _ = sample(n=500)
    for mean in (0.3, 0.6, 0.9):
        k = rc.k_for_confidence(z, mean)
        assert float((k * z).softmax(dim=1).amax(dim=1).mean()) == pytest.approx(mean, abs=1e-9)


def test_k_for_confidence_refuses_what_no_k_gives():
    z, _ = sample(n=10)
    for mean in (0.2, 1.0):
        with pytest.raises(InputError, match=r"between 1/K = 0\.25"):
            rc.k_for_confidence(z, mean)


@pytest.mark.parametrize("fit", [*rc.RECALIBRATIONS.values(), lambda z, y: rc.k_for_confidence(z, 0.9)])
def test_nothing_is_fitted_on_no_answers(fit):
    with pytest.raises(InputError, match="there are no answers to fit on"):
        fit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("fit", [rc.temperature, rc.vector])
def test_no_finite_map_for_answers_that_are_all_right(fit):
    z = 2 * torch.eye(3)
    with pytest.raises(InputError, match="all 3 held-out answers are right"):
        fit(z, torch.arange(3))


def test_no_finite_scale_for_answers_that_are_all_alike_or_all_wrong():
    y = torch.tensor([0, 1, 2])
    for z in (torch.tensor([[1.0, 2.0, 0.0]] * 3) * 0 + 1.0, -2 * torch.eye(3)):
        with pytest.raises(InputError, match="no finite scale"):
            rc.temperature(z, y)


@pytest.mark.parametrize("fit", rc.RECALIBRATIONS.values())
def test_bad_input(fit):
    z, y = sample(n=8, k=2)
    with pytest.raises(InputError, match="one label an image"):
        fit(z, y[:3])
    with pytest.raises(InputError, match="NaN"):
        fit(z * math.nan, y)
    with pytest.raises(InputError, match=r"y must lie in \[0, 1\]"):
        fit(z, y + 5)


def test_logits_of_runs_the_model_in_evaluation_mode_and_gives_it_back():
    net = deepcopy(conv_net()).train()
    x, y = images(10), torch.zeros(10, dtype=torch.long)
    z, labels = rc.logits_of(net, [(x[:6], y[:6]), (x[6:], y[6:])])
    assert net.training and torch.equal(labels, y)
    expected = net.eval()(x)
    rounding = 1e2 * torch.finfo(torch.float32).eps * float(expected.detach().abs().max())
    assert torch.allclose(z, expected, rtol=0, atol=rounding)
