"""Post-hoc recalibration: maps of logits, fitted to held-out answers, applied as a model's last layer.

Each `fit(logits (n, k), labels (n,)) -> nn.Module`; `Recalibrated(model, fit(...))` is a model like any
other, so it can be attacked. Never fit on the images that are then reported on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from poise.checks import InputError, check_count, check_labels, check_logits, check_number
from poise.labels import as_in, names_of
from poise.modes import call_model, evaluating, logits_in, pair
from poise.records import Rows
from poise.shapes import Images, Labels, Logits, Model

Fit = Callable[[Logits, Labels], nn.Module]
WIDEST = 1e4  # a logit multiplier beyond which the data asks for an infinite one


class Affine(nn.Module):
    """z ↦ z @ weight + bias, in the logits' own precision."""

    def __init__(self, weight: Float[Tensor, "k k"], bias: Float[Tensor, " k"]) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, logits: Logits) -> Logits:
        return logits @ self.weight.to(logits.dtype) + self.bias.to(logits.dtype)


class Scale(nn.Module):
    """z ↦ k·z: the same answers with another confidence.

    >>> Scale(2.0)(torch.tensor([[1.0, -1.0]])).tolist()
    [[2.0, -2.0]]
    """

    def __init__(self, k: float) -> None:
        super().__init__()
        check_number("k", k, 1e-12)
        self.k: Tensor
        self.register_buffer("k", torch.tensor(float(k), dtype=torch.float64))

    def forward(self, logits: Logits) -> Logits:
        return logits * self.k.to(logits.dtype)


class Interpolated(nn.Module):
    """Probabilities through a piecewise-linear curve; all of them, or the largest alone.

    The answer stays, ties to 1e-4 aside: a curve for all classes rises (and has a little slope
    everywhere), and where the largest alone is mapped it stays above the next: the others keep their
    order, and are flattened where one of them would lead. A gradient goes through the curve's slope,
    which may be nearly 0 or, for the largest alone, fall: an attack on such a model needs a black-box
    one beside it.
    """

    def __init__(self, at: Float[Tensor, " m"], to: Float[Tensor, " m"], *, top: bool) -> None:
        super().__init__()
        self.at: Tensor
        self.to_: Tensor
        self.register_buffer("at", at.float())
        self.register_buffer("to_", to.float())
        self.top = top

    def forward(self, logits: Logits) -> Logits:
        p = logits.softmax(dim=1)
        if not self.top:
            return (self._curve(p) + 1e-3 * p).clamp_min(1e-12).log()
        first, label = p.max(dim=1, keepdim=True)
        others = p.shape[1] - 1
        q = self._curve(first).clamp(1 / (others + 1) + 1e-4, 1 - 1e-6)
        rest = p.scatter(1, label, 0.0)
        share = rest / rest.sum(dim=1, keepdim=True).clamp_min(1e-12)
        most = (q - 1e-4) / (1 - q)  # a larger share would lead
        second = share.amax(dim=1, keepdim=True)
        flat = ((second - most) / (second - 1 / others).clamp_min(1e-12)).clamp(0, 1)
        share = share + flat * (1 / others - share)
        return ((1 - q) * share).scatter(1, label, q).clamp_min(1e-12).log()

    def _curve(self, p: Tensor) -> Tensor:
        at, to = self.at.to(p.dtype), self.to_.to(p.dtype)
        right = torch.bucketize(p.detach(), at).clamp(1, len(at) - 1)
        slope = (to[right] - to[right - 1]) / (at[right] - at[right - 1])
        return to[right - 1] + slope * (p.clamp(at[0], at[-1]) - at[right - 1])


class Recalibrated(nn.Module):
    """A model with a map of its logits behind it."""

    def __init__(self, model: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.model, self.last = model, last
        self.class_names = names_of(model)

    def forward(self, x: Images) -> Logits:
        logits: Logits = self.last(self.model(x))
        return logits


def temperature(logits: Logits, y: Labels) -> Scale:
    """k·z with the k > 0 of least mean negative log-likelihood (Guo et al. 2017); k is 1/T.

    k < 1 tells of an overconfident model.

    Raises:
        InputError: no finite k above 0 is best, as where every answer is right, or all are alike.

    >>> z = torch.tensor([[2.0, 0.0]] * 4)
    >>> f"{float(temperature(z, torch.tensor([0, 0, 0, 1])).k):.4f}"  # σ(2k) = 3/4
    '0.5493'
    """
    z, labels = _check(logits, y)
    _refuse_all_right(z, labels)

    def loss(log_k: float) -> float:
        return -float(log_softmax(np.exp(log_k) * z, axis=1)[np.arange(len(z)), labels].mean())

    edge = np.log(WIDEST) + np.log(1 / max(1e-12, np.abs(z - z.mean(axis=1, keepdims=True)).mean()))
    found = minimize_scalar(
        loss, bounds=(edge - 2 * np.log(WIDEST), edge), method="bounded", options={"xatol": 1e-8}
    )
    if min(edge - found.x, found.x - edge + 2 * np.log(WIDEST)) < 1e-3:
        raise InputError(
            "no finite scale is best for these held-out answers: look at the model, or give more"
        )
    return Scale(float(np.exp(found.x)))


def platt(logits: Logits, y: Labels) -> Affine:
    """σ(a·(z₁ − z₀) + b) of two classes, fitted to Platt's smoothed targets (Platt 1999).

    Raises:
        InputError: more than two classes.
    """
    z, labels = _check(logits, y)
    if z.shape[1] != 2:
        raise InputError(f"platt scaling is for 2 classes, got {z.shape[1]}: use vector")
    lead, ones = z[:, 1] - z[:, 0], int(labels.sum())
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        s = v[0] * lead + v[1]
        off = 1 / (1 + np.exp(-np.clip(s, -700, 700))) - target
        return float((np.logaddexp(0, s) - target * s).mean()), np.array([(off * lead).mean(), off.mean()])

    a, b = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
    half = torch.tensor([[a, -a], [-a, a]], dtype=torch.float64) / 2
    return Affine(half, torch.tensor([-b / 2, b / 2], dtype=torch.float64))


def vector(logits: Logits, y: Labels) -> Affine:
    """w_j·z_j + b_j of least mean negative log-likelihood (Guo et al. 2017); the answer can change.

    Raises:
        InputError: the held-out answers can be had with certainty, so that no finite map is best.
    """
    z, labels = _check(logits, y)
    _refuse_all_right(z, labels)
    n, k = z.shape
    hot = np.eye(k)[labels]

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        s = z * v[:k] + v[k:]
        off = (softmax(s, axis=1) - hot) / n
        value = (logsumexp(s, axis=1) - s[np.arange(n), labels]).mean()
        return float(value), np.concatenate([(off * z).sum(axis=0), off.sum(axis=0)])

    start = np.concatenate([np.ones(k), np.zeros(k)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    certain = (z * found[:k] + found[k:]).argmax(axis=1) == labels
    if certain.all() or not np.abs(found).max() < WIDEST:
        raise InputError(
            "vector scaling found no finite map: give more held-out images, or use temperature"
        )
    return Affine(torch.diag(torch.from_numpy(found[:k])), torch.from_numpy(found[k:] - found[k:].mean()))


def isotonic(logits: Logits, y: Labels) -> Interpolated:
    """One rising curve for the probabilities of all classes, then normalised; the answer stays.

    Isotonic regression of 1(y = j) on p_j over all images and classes (Zadrozny and Elkan 2002, in
    the answer-keeping form of Zhang et al. 2020). What is calibrated is each class before the sum is
    brought to 1: the largest of many classes stays a little off (by -.03 with ten underconfident
    ones, +.02 overconfident, n = 1,000), where spline is not.
    """
    from sklearn.isotonic import IsotonicRegression

    z, labels = _check(logits, y)
    p, hot = softmax(z, axis=1), np.eye(z.shape[1])[labels]
    fit = IsotonicRegression(y_min=0, y_max=1).fit(p.ravel(), hot.ravel())
    return _curve_through(fit.X_thresholds_, fit.y_thresholds_, top=False)


def spline(logits: Logits, y: Labels, *, knots: int = 6) -> Interpolated:
    """The largest probability corrected by the slope of a spline (Gupta et al. 2021); the answer stays.

    Among the t·n least confident answers, the share that is right minus the mass of confidence, as a
    function of t, is fitted by a natural cubic spline γ; P(right) at the confidence s(t) is s(t) + γ'(t).
    Ours keeps γ to the curve's two ends, which are known: the mean confidence is then the accuracy,
    where least squares alone miss it (by -.007 with ten overconfident classes and n = 1,000).
    """
    check_count("knots", knots, 3)
    z, labels = _check(logits, y)
    top = softmax(z, axis=1).max(axis=1)
    _, place, times = _once(top)
    order = np.argsort(top, kind="stable")
    right = (np.bincount(place, z.argmax(axis=1) == labels) / times)[place][order]  # equals share it
    t = np.arange(1, len(z) + 1) / len(z)
    residual = (right - top[order]).cumsum() / len(z)
    at = np.linspace(0, 1, knots)
    basis = CubicSpline(at, np.eye(knots), bc_type="natural")
    values = np.append(np.zeros(knots - 1), residual[-1])
    inner = basis(t)[:, 1:-1]
    values[1:-1] = np.linalg.lstsq(inner, residual - basis(t)[:, -1] * residual[-1], rcond=None)[0]
    accuracy = top[order] + CubicSpline(at, values, bc_type="natural")(t, 1)
    return _curve_through(top[order], accuracy, top=True)


RECALIBRATIONS: Mapping[str, Fit] = {
    "temperature": temperature,
    "platt": platt,
    "vector": vector,
    "isotonic": isotonic,
    "spline": spline,
}


def k_for_confidence(logits: Logits, mean: float) -> float:
    """The k at which k·z has that mean confidence, for comparisons at equal clean confidence.

    Raises:
        InputError: a mean that no k gives: it must lie above 1/K and below 1.

    >>> f"{k_for_confidence(torch.tensor([[2.0, 0.0]]), 0.75):.4f}"
    '0.5493'
    """
    z, _ = _check(logits, torch.zeros(len(logits), dtype=torch.long))

    def off(log_k: float) -> float:
        return float(softmax(np.exp(log_k) * z, axis=1).max(axis=1).mean()) - mean

    if not off(-30.0) < 0 < off(30.0):
        raise InputError(
            f"the mean confidence must lie between 1/K = {1 / z.shape[1]:.4g} and what the answers allow "
            f"({off(30.0) + mean:.4g}), got {mean:g}"
        )
    return float(np.exp(brentq(off, -30.0, 30.0, xtol=1e-12)))


def logits_of(model: Model, batches: Iterable[tuple[Images, Labels]]) -> tuple[Logits, Labels]:
    """The model's logits (n, k) and the labels (n,) over batches, in evaluation mode, on the CPU."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    device = next(parameters, torch.empty(0)).device
    rows, labels = Rows("logits"), Rows("y")
    with evaluating(model), torch.no_grad():
        for x, y in map(pair, as_in(model, batches)):
            rows.add(logits_in(call_model(model, x.to(device))).float())
            labels.add(y)
    if not len(rows):
        raise InputError("there are no images to recalibrate on: the batches are empty")
    return rows.joined(), labels.joined()


def _check(logits: Logits, y: Labels) -> tuple[np.ndarray, np.ndarray]:
    if not len(logits):
        raise InputError("there are no answers to fit on: give held-out images, some of which are right")
    check_labels(y, len(logits))
    check_logits(logits, len(y), y)
    return logits.detach().double().cpu().numpy(), y.cpu().numpy()


def _refuse_all_right(z: np.ndarray, labels: np.ndarray) -> None:
    if (z.argmax(axis=1) == labels).all():
        raise InputError(
            f"all {len(labels)} held-out answers are right, so no finite scale is best: "
            "give more held-out images"
        )


def _curve_through(at: np.ndarray, to: np.ndarray, *, top: bool) -> Interpolated:
    """The curve through these points, each place once, at the mean of its values, within [0, 1]."""
    single, place, times = _once(at)
    if len(single) < 2:
        raise InputError("all held-out confidences are the same: there is no curve to fit")
    mean = np.clip(np.bincount(place, to) / times, 0, 1)
    return Interpolated(torch.from_numpy(single), torch.from_numpy(mean), top=top)


def _once(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different values, ascending, where each given one is among them, and how often."""
    return np.unique(at.astype(np.float32), return_inverse=True, return_counts=True)
