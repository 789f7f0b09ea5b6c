"""Certificates: lower and upper bounds of the confidence over the ball round every image.

They hold in real arithmetic; the sums are in float64. What an attack finds is an upper bound of the lowest
confidence, a certificate's `lower` one from below.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from poise.certify.bounds import ENTRIES, L2, Bounds, Linf, Region
from poise.certify.layers import Box
from poise.certify.network import READERS, Network, read
from poise.checks import InputError, check_images, check_logits, check_number, settle
from poise.modes import call_model, logits_in
from poise.naming import lookup
from poise.shapes import Images, Labels, Mask, Model, PerSample

ALIKE = 1e-6  # relative difference of logits: what is read as real numbers may be rounded to float32
SPEED = 2e9  # multiply-adds a second of one core, for the estimate in a refusal
REGIONS: dict[str, Callable[[Images, float], Region]] = {"linf": Linf, "l2": L2}
Functions: TypeAlias = Callable[[Tensor], Tensor]  # weights (n, m, classes) -> their least values (n, m)


class Interval(NamedTuple):
    """One row an image, float64, with y the prediction at the image itself.

    Attributes:
        lower: no image of the ball has a confidence (its largest probability) below this.
        upper: no image of the ball has a probability of y above this.
        label_kept: no image of the ball has another prediction than y.
    """

    lower: PerSample
    upper: PerSample
    label_kept: Mask


class Certificate(Protocol):
    """Bounds of the confidence over a ball, as `Ibp` and `Crown` give them."""

    @property
    def eps(self) -> float:
        """The ball's radius, in pixel units."""
        ...

    @property
    def norm(self) -> str:
        """The ball's norm, "linf" or "l2"."""
        ...

    def __call__(self, model: Model, x: Images) -> Interval:
        """The bounds of each image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ibp:
    """Interval bound propagation (Gowal et al. 2018): two forwards an image.

    Args:
        eps: the ball's radius, in pixel units; pixels stay in [0, 1] as well.
        norm: "linf" or "l2".
    """

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        settle(self)
        lookup(REGIONS, self.norm, "norm of a certificate")
        object.__setattr__(self, "norm", self.norm.lower())
        check_number("eps", self.eps, 0, 1 if self.norm == "linf" else torch.inf)

    def __call__(self, model: Model, x: Images) -> Interval:
        with _open(model, x) as (network, x):
            return _join(self._bounded(network, part, y) for part, y in _parts(network, x))

    def _bounded(self, network: Network, x: Images, y: Labels) -> Interval:
        bounds = self._intervals(network, x)
        return _confidence(partial(bounds.of_logits, through=False), y, bounds)

    def _intervals(self, network: Network, x: Images) -> Bounds:
        return Bounds.by_intervals(network, REGIONS[self.norm](x, self.eps))


@dataclass(frozen=True, kw_only=True)
class Crown(Ibp):
    """The tighter of IBP and CROWN (Zhang et al. 2018), linear bounds carried back to the images.

    Args:
        eps: the ball's radius, in pixel units; pixels stay in [0, 1] as well.
        norm: "linf" or "l2".
        limit: multiply-adds an image above which a call is refused before it starts.
    """

    limit: float = 1e11

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("limit", self.limit, 0)

    def __call__(self, model: Model, x: Images) -> Interval:
        with _open(model, x) as (network, x):
            need = float(self._cost(network, x).mean()) if len(x) else 0.0
            if need > self.limit:
                raise InputError(
                    f"crown would take up to {need:.2g} multiply-adds an image, about "
                    f"{need / SPEED:.0f} s, and limit is {self.limit:.2g}: take ibp, a smaller "
                    "eps, or raise limit"
                )
            return _join(self._bounded(network, part, y) for part, y in _parts(network, x))

    def cost(self, model: Model, x: Images) -> PerSample:
        """Multiply-adds for each image, at most: neurons that intervals leave unsure × a row's work."""
        with _open(model, x) as (network, x):
            return self._cost(network, x)

    def _cost(self, network: Network, x: Images) -> PerSample:
        parts = (self._intervals(network, part).cost() for part, _ in _parts(network, x))
        return torch.cat([x.new_zeros(0), *parts])

    def _bounded(self, network: Network, x: Images, y: Labels) -> Interval:
        bounds = Bounds.by_crown(network, REGIONS[self.norm](x, self.eps))

        def least(weights: Tensor) -> Tensor:
            found = (bounds.of_logits(weights, through=through) for through in (False, True))
            return torch.maximum(*found)

        wide, narrow = super()._bounded(network, x, y), _confidence(least, y, bounds)
        return Interval(
            torch.maximum(wide.lower, narrow.lower),
            torch.minimum(wide.upper, narrow.upper),
            wide.label_kept | narrow.label_kept,
        )


def ibp(*, eps: float = 8 / 255, norm: str = "linf") -> Ibp:
    """Bounds of the confidence by intervals, for nets trained for them (Gowal et al. 2018)."""
    return Ibp(eps=eps, norm=norm)


def crown(*, eps: float = 8 / 255, norm: str = "linf", limit: float = 1e11) -> Crown:
    """Bounds of the confidence by intervals and by linear functions, the tighter (Zhang et al. 2018)."""
    return Crown(eps=eps, norm=norm, limit=limit)


@dataclass(frozen=True)
class Remembered:
    """The same bounds; those of the images that came last are kept for whoever asks again."""

    certificate: Certificate
    last: dict[bytes, Interval] = field(default_factory=dict, repr=False, compare=False)

    @property
    def eps(self) -> float:
        """As the certificate."""
        return self.certificate.eps

    @property
    def norm(self) -> str:
        """As the certificate."""
        return self.certificate.norm

    def __call__(self, model: Model, x: Images) -> Interval:
        pixels = x.detach().cpu().contiguous().view(torch.uint8).numpy()
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self.last:
            self.last[key] = self.certificate(model, x)
        return self.last[key]


def remembered(certificate: Certificate) -> Remembered:
    """The certificate for several attacks on one model: an image's bounds are worked out once.

    >>> remembered(ibp(eps=0.1)).eps
    0.1
    """
    return Remembered(certificate)


def _confidence(least: Functions, y: Labels, bounds: Bounds) -> Interval:
    """Bounds of p_y = 1 / Σ_j e^{−m_j}, the margins m_j = z_y − z_j bounded one by one, and together.

    Together: e^{−m_j} lies under its chord c_j − s_j m_j over [l_j, u_j], so that
    Σ_j e^{−m_j} <= Σ_j c_j − min Σ_j s_j m_j, which is one more linear function. Everything is divided by
    the largest e^{−l_j}.
    """
    classes = bounds.network.nodes[-1].shape[0]
    one = torch.eye(classes, dtype=bounds.boxes[0].lower.dtype, device=y.device)
    margins = one[y][:, None] - one
    low, high = least(margins), -least(-margins)
    largest = (-low).amax(dim=1, keepdim=True)
    ends, width = (-low - largest).exp(), (high - low).clamp_min(0)
    slopes = ends * torch.where(width > 0, -torch.expm1(-width) / width, 1.0)
    together = least((slopes[:, :, None] * margins).sum(dim=1, keepdim=True))[:, 0]
    apart = ends.sum(dim=1)
    total = torch.minimum(apart, (ends + slopes * low).sum(dim=1) - together)
    lower = (-largest[:, 0]).exp() / total
    upper = 1 / (-high).exp().sum(dim=1)
    others = low.scatter(1, y[:, None], torch.inf)
    kept = (others > 0).all(dim=1) | (lower > 0.5)
    lower = torch.where(lower > 1 / classes, lower, 1 / classes)  # also where numbers overflowed to NaN
    return Interval(lower, torch.where(upper < 1, upper, 1.0), kept)


@contextmanager
def _open(model: Model, x: Images) -> Iterator[tuple[Network, Images]]:
    """The layers of the model in float64 and evaluation mode, and the images, checked; no graph."""
    check_images(x)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().to(torch.float64, copy=True).clamp_(0, 1)
        own = copy.deepcopy(model).double().eval() if isinstance(model, nn.Module) else model
        noise = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        network, logits = read(own, noise.to(x.device), READERS)
        check_logits(logits, 2)
        for part in x.split(_images_at_once(network)) if len(x) else ():
            _check_alike(network, own, part)
        yield network, x


def _check_alike(network: Network, model: Model, x: Images) -> None:
    """Refuse layers that do not give the model's logits."""
    theirs, ours = logits_in(call_model(model, x)), network.boxes(Box(x, x))[-1].lower
    check_logits(theirs, len(x))
    off = float((theirs - ours).abs().max() / (1 + theirs.abs().max()))
    if off > ALIKE:
        raise InputError(
            f"the layers that torch runs do not give the model's logits (off by {off:.1g}): something "
            "in it depends on the images unseen, or works in less than float32"
        )


def _images_at_once(network: Network) -> int:
    entries = sum(torch.Size(node.shape).numel() for node in network.nodes)
    return max(1, ENTRIES // (2 * entries + 3 * network.nodes[-1].shape[0] ** 2))


def _parts(network: Network, x: Images) -> Iterator[tuple[Images, Labels]]:
    """Images that memory has room for, and their predictions."""
    for part in x.split(_images_at_once(network)) if len(x) else ():
        yield part, network.boxes(Box(part, part))[-1].lower.argmax(dim=1)


def _join(parts: Iterator[Interval]) -> Interval:
    empty = torch.zeros(0, dtype=torch.float64)
    columns = list(zip(*parts, strict=True)) or [(empty,), (empty,), (empty.bool(),)]
    return Interval(*(torch.cat(column) for column in columns))
