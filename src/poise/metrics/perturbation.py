"""How much an attacked image differs from the clean one: one number an image, in pixel units."""

import torch

from poise.checks import InputError, check_images
from poise.shapes import Images, PerSample


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

    The window shrinks to the largest odd one that fits a smaller image. Computed by torchmetrics
    with population (not sample) covariances; borders where the window does not fit are left out.

    >>> x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(ssim(x, x), torch.ones(2)))
    True
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _delta(x_adv, x)
    if len(x) == 0:
        return x.new_zeros(0)
    fits = min(x.shape[2:])
    window = min(7, fits - 1 + fits % 2)
    values = structural_similarity_index_measure(
        x_adv, x, gaussian_kernel=False, kernel_size=window, data_range=1.0, reduction="none"
    )
    assert not isinstance(values, tuple)
    return values.reshape(len(x))


def _delta(x_adv: Images, x: Images) -> Images:
    check_images(x_adv)
    check_images(x)
    if x_adv.shape != x.shape:
        raise InputError(f"both images must have one shape, got {tuple(x_adv.shape)} and {tuple(x.shape)}")
    return x_adv - x
