"""How much an attacked image differs from the clean one: one number an image, in pixel units."""

import torch
from torch.nn import functional as F

from poise.checks import InputError, check_images
from poise.shapes import Images, PerSample

AT_ONCE = 2**19  # numbers


def delta_w(x_adv: Images, x: Images) -> PerSample:
    """ΔW = mean |δ|, the Wasserstein distance between a zero vector and δ (section 4.3).

    All of one side's mass lies at 0, so the optimal transport moves each |δ_i| home.

    >>> delta_w(torch.tensor([[[[0.5, 0.0]]]]), torch.tensor([[[[0.0, 0.0]]]])).tolist()
    [0.25]
    """
    return _delta(x_adv, x).abs().flatten(1).mean(dim=1)


def linf(x_adv: Images, x: Images) -> PerSample:
    """Max |δ|, in pixel units of [0, 1].

    >>> linf(torch.tensor([[[[0.5, 0.0]]]]), torch.tensor([[[[0.0, 0.25]]]])).tolist()
    [0.5]
    """
    return _delta(x_adv, x).abs().flatten(1).amax(dim=1)


def l2(x_adv: Images, x: Images) -> PerSample:
    """√Σ δ², in pixel units of [0, 1].

    >>> l2(torch.tensor([[[[0.75, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])).tolist()
    [1.25]
    """
    length: PerSample = torch.linalg.vector_norm(_delta(x_adv, x).flatten(1), dim=1)
    return length


def ssim(x_adv: Images, x: Images) -> PerSample:
    """Structural similarity in a uniform 7×7 window, data range 1 (Wang et al. 2004).

    (2 μ_a μ_b + C1)(2 σ_ab + C2) / ((μ_a² + μ_b² + C1)(σ_a² + σ_b² + C2)), averaged over all places
    where the window fits and over the channels; C1 = 0.01², C2 = 0.03², σ the sample covariances.
    So does scikit-image by default; torchmetrics counts reflected borders in as well. On a smaller
    image the window shrinks to the largest odd one that fits.

    >>> x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(ssim(x, x), torch.ones(2)))
    True
    """
    _delta(x_adv, x)
    return structural_similarity(x_adv, x)


def structural_similarity(x_adv: Images, x: Images) -> PerSample:
    """SSIM as `ssim` has it, of images that may lie outside [0, 1]; the data range stays 1."""
    few = max(1, AT_ONCE // max(1, x[:1].numel()))  # a dozen float64 copies of a batch are large
    parts = zip(x_adv.split(few), x.split(few), strict=True)
    return torch.cat([_similarity(*part) for part in parts])


def _similarity(x_adv: Images, x: Images) -> PerSample:
    side = min(x.shape[2:])
    window = min(7, side - 1 + side % 2)
    a, b = x_adv.double(), x.double()  # variances are small differences of large numbers
    mu_a, mu_b, aa, bb, ab = (F.avg_pool2d(v, window, 1) for v in (a, b, a * a, b * b, a * b))
    sample = window**2 / max(1, window**2 - 1)
    var_a, var_b = sample * (aa - mu_a**2), sample * (bb - mu_b**2)
    covariance = sample * (ab - mu_a * mu_b)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(dim=1).to(x.dtype)


def _delta(x_adv: Images, x: Images) -> Images:
    check_images(x_adv)
    check_images(x)
    if x_adv.shape != x.shape:
        raise InputError(f"both images must have one shape, got {tuple(x_adv.shape)} and {tuple(x.shape)}")
    return x_adv - x
