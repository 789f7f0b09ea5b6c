"""Metrics against other packages, against hand-worked numbers, and against shared contracts."""

import math

import calibration
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from skimage.metrics import structural_similarity
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

import poise
from poise import InputError
from poise.metrics import CALIBRATION, METRICS, PERTURBATION, brier, ece, label_kept, nll, reliability

BINS = 15


def draw(seed, *, n=200, classes=10, sharpness=3.0, dtype=torch.float64):
    """Softmax rows, and labels that are the prediction about half the time."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=generator, dtype=dtype)
    random = torch.randint(classes, (n,), generator=generator)
    right = torch.rand(n, generator=generator) < 0.5
    return logits.softmax(dim=1), torch.where(right, logits.argmax(dim=1), random)


def pictures(seed, shape, *, noise=0.1, dtype=torch.float64):
    """Noisy and clean random images."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return (x + noise * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1), x


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "n": st.integers(1, 300),
        "classes": st.sampled_from([2, 3, 10, 100]),
        "sharpness": st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    }
)


# ECE against its rivals


@given(case=cases)
def test_ece_is_that_of_torchmetrics_away_from_bin_edges(case):
    probs, y = draw(**case)
    place = probs.amax(dim=1) * BINS
    inside = (place - place.round()).abs() > 1e-4  # it bins in float32, and [lower, upper)
    probs, y = probs[inside], y[inside]
    if len(y):
        rival = multiclass_calibration_error(probs, y, num_classes=case["classes"], n_bins=BINS, norm="l1")
        assert ece(probs, y) == pytest.approx(rival.item(), abs=1e-6)


@given(case=cases)
def test_ece_is_that_of_uncertainty_calibration(case):
    probs, y = draw(**case)
    rival = calibration.get_ece(probs.numpy(), y.numpy(), num_bins=BINS)  # top label, L1, equal width
    assert ece(probs, y) == pytest.approx(rival, abs=1e-12)


@pytest.mark.parametrize("bins", [10, 15])
@pytest.mark.parametrize("seed", range(5))
def test_ece_is_that_of_uncertainty_calibration_on_the_edges_too(bins, seed):
    # every probability is a multiple of 1/bins; the rival bins (lower, upper] as well
    random = np.random.default_rng(seed)
    counts = random.multinomial(bins, [0.6, 0.3, 0.1], size=200)
    probs, y = counts / bins, random.integers(3, size=200)
    rival = calibration.get_ece(probs, y, num_bins=bins)
    assert ece(torch.tensor(probs), torch.tensor(y), bins=bins) == pytest.approx(rival, abs=1e-12)


# the binning side


def test_field_notes_example_tells_the_two_binning_sides_apart():
    # 100 at 0.5, 90 of them right, and 100 at 0.55, 20 of them right
    probs = torch.tensor([[0.5, 0.5]] * 100 + [[0.55, 0.45]] * 100)
    y = torch.tensor([0] * 90 + [1] * 10 + [0] * 20 + [1] * 80)
    other_side = multiclass_calibration_error(probs, y, num_classes=2, n_bins=10)
    assert ece(probs, y, bins=10) == pytest.approx(0.375, abs=1e-7)  # (0.4 + 0.35) / 2
    assert other_side.item() == pytest.approx(0.025, abs=1e-5)  # |0.55 - 0.525|, summed in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("classes", "bins"), [(k, b) for b in (10, 15) for k in range(2, b + 1) if b % k == 0]
)
def test_uniform_confidence_lies_in_the_bin_that_ends_with_it(classes, bins, dtype):
    uniform = torch.zeros(1, classes, dtype=dtype).softmax(dim=1)
    diagram = reliability(uniform, torch.tensor([0]), bins=bins)
    assert diagram.count.nonzero().flatten().tolist() == [bins // classes - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_certainty_lies_in_the_last_bin(bins, dtype):
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    y = torch.tensor([0, 0])
    diagram = reliability(probs, y, bins=bins)
    assert diagram.count[-1] == 2 and diagram.accuracy[-1] == 0.5
    assert ece(probs, y, bins=bins) == 0.5


def test_the_smallest_confidences_are_not_lost():
    uniform = torch.full((4, 100_000), 1e-5, dtype=torch.float64)
    diagram = reliability(uniform, torch.zeros(4, dtype=torch.int64))
    assert diagram.count.tolist() == [4] + [0] * 14
    assert ece(uniform, torch.zeros(4, dtype=torch.int64)) == pytest.approx(1 - 1e-5)


@given(case=cases, bins=st.integers(1, 30))
def test_reliability_is_what_a_plain_loop_finds(case, bins):
    probs, y = draw(**case)
    diagram = reliability(probs, y, bins=bins)
    msp, prediction = probs.max(dim=1)
    assert diagram.count.sum() == len(y)
    for b in range(bins):
        inside = (msp > b / bins) & (msp <= (b + 1) / bins)
        assert diagram.lower[b] == b / bins and diagram.upper[b] == (b + 1) / bins
        assert diagram.count[b] == inside.sum()
        means = msp[inside].mean(), (prediction == y)[inside].double().mean()  # NaN in an empty bin
        got = diagram.confidence[b], diagram.accuracy[b]
        torch.testing.assert_close(got, means, rtol=0, atol=1e-12, equal_nan=True)


# hand-worked numbers

WORKED = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]], dtype=torch.float64)
WORKED_Y = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 2 / 3),
        ("confidence", 0.7),
        ("ece", 0.1),  # 2/3 * |0.5 - 0.6| + 1/3 * |1 - 0.9|
        ("brier", (0.32 + 0.72 + 0.02) / 3),
        ("nll", -(math.log(0.6) + math.log(0.4) + math.log(0.9)) / 3),
    ],
)
def test_hand_worked_numbers(name, value):
    assert METRICS[name](WORKED, WORKED_Y) == pytest.approx(value, abs=1e-12)


def test_hand_worked_brier_of_three_classes():
    probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert brier(probs, torch.tensor([2])) == pytest.approx(0.25 + 0.09 + 0.64)


def test_nll_of_the_impossible_is_infinite():
    assert nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_nll_is_that_of_scikit_learn(seed):
    probs, y = draw(seed)
    assert nll(probs, y) == pytest.approx(log_loss(y.numpy(), probs.numpy(), labels=range(10)))


@pytest.mark.parametrize("seed", range(3))
def test_brier_is_the_squared_distance_from_the_one_hot_label(seed):
    probs, y = (t.numpy() for t in draw(seed))
    assert brier(*draw(seed)) == pytest.approx(np.mean(np.sum((probs - np.eye(10)[y]) ** 2, axis=1)))


@pytest.mark.parametrize("seed", range(3))
def test_label_kept_counts_the_rows_of_equal_argmax(seed):
    (clean, _), (attacked, _) = draw(seed, classes=3), draw(seed + 100, classes=3)
    same = np.mean(clean.numpy().argmax(1) == attacked.numpy().argmax(1))
    assert label_kept(clean, attacked) == pytest.approx(same)
    assert 0 < same < 1


# perturbations against other packages


@pytest.mark.parametrize("seed", range(5))
def test_delta_w_is_scipys_wasserstein_distance_from_zero(seed):
    x_adv, x = pictures(seed, (3, 2, 9, 9))
    for got, delta in zip(poise.metrics.delta_w(x_adv, x), (x_adv - x).flatten(1).numpy(), strict=True):
        zeros = np.zeros_like(delta)
        # A point mass at 0 leaves one transport plan, cost mean |δ|: the sign of δ plays no part,
        # so 'between a zero vector and δ' and 'between a zero vector and |δ|' are one number.
        assert got.item() == pytest.approx(wasserstein_distance(zeros, np.abs(delta)), abs=1e-12)
        assert got.item() == pytest.approx(wasserstein_distance(zeros, delta), abs=1e-12)


@pytest.mark.parametrize(("name", "order"), [("linf", np.inf), ("l2", 2)])
@pytest.mark.parametrize("seed", range(3))
def test_lengths_are_numpys_norms(name, order, seed):
    x_adv, x = pictures(seed, (4, 3, 6, 5))
    norms = [np.linalg.norm(delta, order) for delta in (x_adv - x).flatten(1).numpy()]
    np.testing.assert_allclose(PERTURBATION[name](x_adv, x).numpy(), norms, rtol=1e-12)


def scikit_ssim(x_adv, x, window):
    return [
        structural_similarity(
            clean.double().numpy(),  # given float32 it computes in float32
            attacked.double().numpy(),
            win_size=window,
            data_range=1.0,
            channel_axis=0,
            use_sample_covariance=True,
            gaussian_weights=False,
        )
        for attacked, clean in zip(x_adv, x, strict=True)
    ]


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((3, 1, 28, 28), 7),
        ((3, 3, 32, 32), 7),
        ((3, 1, 8, 8), 7),
        ((3, 1, 12, 7), 7),
        ((3, 1, 5, 6), 5),
        ((3, 3, 6, 9), 5),
        ((3, 1, 4, 4), 3),
    ],
)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_ssim_of_random_images_is_that_of_scikit_image(shape, window, noise):
    x_adv, x = pictures(0, shape, noise=noise)
    np.testing.assert_allclose(poise.metrics.ssim(x_adv, x), scikit_ssim(x_adv, x, window), atol=1e-9)


def test_ssim_of_smooth_images_is_that_of_scikit_image():
    ramp = torch.linspace(0.2, 0.8, 28)
    x = (ramp[:, None] * ramp[None, :]).expand(2, 1, 28, 28).clone()
    x_adv = x + torch.tensor([0.01, 0.1])[:, None, None, None] * ramp
    np.testing.assert_allclose(poise.metrics.ssim(x_adv, x), scikit_ssim(x_adv, x, 7), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ssim_of_bright_flat_images_is_that_of_scikit_image(seed):
    # a variance of 1e-5 is the difference of two numbers near 0.8: in float32 it is off by 3e-5 here
    generator = torch.Generator().manual_seed(seed)
    x = 0.9 + 0.02 * torch.rand(4, 1, 28, 28, generator=generator)
    x_adv = x + 0.02 * torch.rand(x.shape, generator=generator)
    np.testing.assert_allclose(poise.metrics.ssim(x_adv, x), scikit_ssim(x_adv, x, 7), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ssim_of_digits_is_that_of_scikit_image(seed):
    x, _ = next(iter(poise.data.load("digits", images=32, seed=seed)))
    generator = torch.Generator().manual_seed(seed)
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    np.testing.assert_allclose(poise.metrics.ssim(x_adv, x), scikit_ssim(x_adv, x, 7), atol=1e-6)


# contracts that every metric of the table keeps


def test_the_contracts_below_reach_every_metric():
    assert set(METRICS) == {*CALIBRATION, *PERTURBATION, "label_kept"}


@pytest.mark.parametrize("name", CALIBRATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calibration_gives_a_float_whatever_the_order_of_rows(name, dtype):
    probs, y = draw(0, dtype=dtype)
    before = probs.clone(), y.clone()
    value = METRICS[name](probs, y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    assert type(value) is float
    assert METRICS[name](probs[order], y[order]) == pytest.approx(value, rel=1e-12)
    assert torch.equal(probs, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_of_repeated_rows_is_the_same(name):
    probs, y = draw(1)
    assert METRICS[name](probs.repeat(3, 1), y.repeat(3)) == pytest.approx(METRICS[name](probs, y))


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_of_no_rows_is_nan(name):
    assert math.isnan(METRICS[name](torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("name", CALIBRATION)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_calibration_takes_whole_numbers_of_any_width(name, dtype):
    probs, y = draw(2)
    assert METRICS[name](probs, y.to(dtype)) == METRICS[name](probs, y)


@pytest.mark.parametrize("name", CALIBRATION)
@pytest.mark.parametrize(
    ("probs", "y", "message"),
    [
        ([[2.0, -1.0]], [0], r"softmax"),  # logits, though they sum to 1
        ([[0.3, 0.3]], [0], r"sum to 1"),
        ([[math.nan, 1.0]], [0], r"probabilities"),
        ([[1.0]], [0], r"2 classes"),
        ([0.5, 0.5], [0, 1], r"shape \(n, classes\)"),
        ([[0.5, 0.5]], [2], r"\[0, 1\], got \[2, 2\]"),
        ([[0.5, 0.5]], [-1], r"got \[-1, -1\]"),
        ([[0.5, 0.5]], [0, 1], r"shape \(1,\), got shape \(2,\)"),
        ([[0.5, 0.5]], [[0]], r"shape \(1,\), got shape \(1, 1\)"),
        ([[0.5, 0.5]], [0.0], r"whole-number"),
        ([[0.5, 0.5]], [True], r"whole-number"),
    ],
)
def test_calibration_refuses_what_cannot_be_right(name, probs, y, message):
    with pytest.raises(InputError, match=message):
        METRICS[name](torch.tensor(probs), torch.tensor(y))


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_a_number_of_bins_that_is_none_is_refused(bins):
    with pytest.raises(InputError, match="bins"):
        ece(WORKED, WORKED_Y, bins=bins)


def test_label_kept_keeps_the_contract_of_the_other_numbers():
    (clean, _), (attacked, _) = draw(0, classes=3), draw(1, classes=3)
    before = clean.clone(), attacked.clone()
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))
    value = label_kept(clean, attacked)
    assert type(value) is float
    assert label_kept(clean[order], attacked[order]) == pytest.approx(value)
    assert torch.equal(clean, before[0]) and torch.equal(attacked, before[1])
    assert math.isnan(label_kept(torch.zeros(0, 3), torch.zeros(0, 3)))


def test_label_kept_refuses_logits_and_other_shapes():
    probs, _ = draw(0)
    with pytest.raises(InputError, match="softmax"):
        label_kept(probs, probs.log())
    with pytest.raises(InputError, match="one shape"):
        label_kept(probs, probs[:-1])


@pytest.mark.parametrize("name", PERTURBATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perturbation_is_one_number_an_image_wherever_the_image_stands(name, dtype):
    x_adv, x = pictures(0, (6, 3, 9, 8), dtype=dtype)
    before = x_adv.clone(), x.clone()
    values = METRICS[name](x_adv, x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([METRICS[name](x_adv[i : i + 1], x[i : i + 1]) for i in range(len(x))])
    assert values.shape == (6,) and values.dtype == dtype
    torch.testing.assert_close(METRICS[name](x_adv[order], x[order]), values[order])
    torch.testing.assert_close(alone, values)
    assert torch.equal(x_adv, before[0]) and torch.equal(x, before[1])


@pytest.mark.parametrize("name", PERTURBATION)
def test_perturbation_of_nothing_is_none(name):
    _, x = pictures(0, (3, 1, 8, 8))
    still = torch.full((3,), 1.0 if name == "ssim" else 0.0, dtype=x.dtype)
    torch.testing.assert_close(METRICS[name](x, x), still)
    assert METRICS[name](x[:0], x[:0]).shape == (0,)


@pytest.mark.parametrize("name", PERTURBATION)
def test_perturbation_refuses_other_shapes_and_other_units(name):
    x_adv, x = pictures(0, (3, 1, 8, 8))
    for wrong, message in [
        (x_adv[:, :, :-1], "one shape"),
        (x_adv[0], "four dimensions"),
        (255 * x_adv, r"\[0, 1\]"),
        (x_adv * math.nan, "NaN"),
        ((255 * x_adv).to(torch.uint8), "floating point"),
    ]:
        with pytest.raises(InputError, match=message):
            METRICS[name](wrong, x)
