"""Whether perturbations fall on pixels that matter: numbers for Figure 1 and section 5.2."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import torch

from poise.checks import InputError, check_images, check_number
from poise.draws import Draw
from poise.modes import ask, differentiable
from poise.shapes import Images, Model, PerSample
from poise.threat import Linf

OBJECT = 0.5  # brighter pixels are the object's, in images with a dark ground (MNIST)
AT_ONCE = 64


def saliency(net: Model, x: Images) -> Images:
    """|∂ log p_ŷ / ∂x| / (1 − p_ŷ) at the clean image, for every pixel: that of the log-odds of ŷ.

    Within an image it is the gradient of the log-confidence up to a factor, and unlike it does
    not vanish where p_ŷ rounds to 1.

    Args:
        net: images in [0, 1] -> logits.
        x: images, on the net's device.
    """
    check_images(x)
    return torch.cat([_saliency(net, part) for part in x.split(AT_ONCE)])


def relative_weight(delta: Images, s: Images) -> PerSample:
    """Σ|δ|s / (Σ|δ| · mean s): the mean of s where the change falls, over its mean in the image.

    1 if the change does not heed s, 2 if it falls on pixels with twice the mean, 0 if it avoids
    all with s > 0; NaN where nothing changes or s is 0 everywhere.

    >>> s = torch.tensor([[[[3.0, 1.0]]]])  # mean 2
    >>> relative_weight(torch.tensor([[[[-0.1, 0.0]]]]), s).tolist()
    [1.5]
    """
    if delta.shape != s.shape:
        raise InputError(f"delta and s must have one shape, got {tuple(delta.shape)} and {tuple(s.shape)}")
    weight, s = delta.double().abs().flatten(1), s.double().flatten(1)
    return (weight * s).sum(dim=1) / (weight.sum(dim=1) * s.mean(dim=1))


def salience(
    net: Model, x: Images, changed: Mapping[str, Images], *, brighter: float = OBJECT
) -> pl.DataFrame:
    """Where each attack's changes fall, one row an attack and image.

    Columns: attack, image; `salient`, the `relative_weight` of the change on the `saliency` of the
    clean image; `object`, that on the object's pixels (x > `brighter`), which is `object_share` of
    Σ|δ| over `object_area`, their share of the image. Null where it is 0 / 0. Pixels at 0 or 1 can
    move one way only, so chance is not exactly 1: put `random_signs` in as one more attack.

    Args:
        net: images in [0, 1] -> logits.
        x: clean images (n, c, h, w), on the net's device.
        changed: the attacked images, of the shape of x, by attack.
        brighter: the grey level above which a pixel is the object's.

    Raises:
        InputError: images of another shape than x, or `brighter` outside [0, 1].
    """
    check_number("brighter", brighter, 0, 1)
    s, on = saliency(net, x), (x > brighter).double()
    parts = []
    for name, x_adv in changed.items():
        if x_adv.shape != x.shape:
            raise InputError(f"{name} changed the shape {tuple(x.shape)} to {tuple(x_adv.shape)}")
        away = (x_adv.double() - x.double()).abs()
        columns = {
            "salient": relative_weight(away, s),
            "object": relative_weight(away, on),
            "object_share": (away * on).flatten(1).sum(dim=1) / away.flatten(1).sum(dim=1),
            "object_area": on.flatten(1).mean(dim=1),
        }
        numbers = {key: value.cpu().numpy() for key, value in columns.items()}
        parts.append(pl.DataFrame({"attack": [name] * len(x), "image": range(len(x)), **numbers}))
    return pl.concat(parts).with_columns(pl.selectors.float().fill_nan(None))


def random_signs(x: Images, *, eps: float, seed: int = 0) -> Images:
    """The images with every pixel moved by ±eps at random and held to [0, 1]: the level of chance.

    >>> random_signs(torch.full((1, 1, 1, 4), 0.5), eps=0.25).sub(0.5).abs().tolist()
    [[[[0.25, 0.25, 0.25, 0.25]]]]
    """
    check_images(x)
    draw = Draw.of(x, torch.Generator().manual_seed(seed))
    return Linf(eps).project(x + eps * (draw.uniform(x) - 0.5).sign(), x)


def _saliency(net: Model, x: Images) -> Images:
    with differentiable(net):
        x = x.detach().clone().requires_grad_()
        logits = ask(net, x).double()
        first = logits.argmax(dim=1, keepdim=True)
        others = logits.scatter(1, first, float("-inf")).logsumexp(dim=1)
        odds = logits.gather(1, first)[:, 0] - others
        return torch.autograd.grad(odds.sum(), x)[0].abs()
