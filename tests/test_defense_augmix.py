"""AugMix on batches: each operation against torchvision's on one image, the mixture by its formula."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from nets import images
from poise import InputError
from poise.defenses.augmix import (
    AugMix,
    autocontrast,
    equalize,
    operation,
    posterize,
    solarize,
    warp,
)

SHAPE = (3, 24, 36)  # large enough for equalize to do something, and not square
LEVELS = torch.tensor([0.01, 0.1, 0.2, 0.26, 0.3, 0.55, 0.9, 1.0])


def eight_bit(n=8, seed=0):
    """Images whose pixels are whole 255ths, darker from one to the next."""
    dimmer = torch.linspace(1.0, 0.3, n)[:, None, None, None]
    return (images(n, seed, shape=SHAPE) * dimmer * 255).round() / 255


def bytes_of(x):
    return (x * 255).round().to(torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_autocontrast_is_torchvision_s():
    x = eight_bit() * 0.6 + 0.2
    x[0, 1] = 0.25  # a constant channel
    torch.testing.assert_close(autocontrast(x), tv.autocontrast(x))


@pytest.mark.parametrize("shape", [SHAPE, (1, 8, 8), (3, 16, 16)])
def test_equalize_is_torchvision_s(shape):
    x = (images(4, 1, shape=shape) ** 2 * 255).round() / 255
    x[0, 0] = 0.4
    assert torch.equal(bytes_of(equalize(x)), tv.equalize(bytes_of(x)))


def test_posterize_is_torchvision_s():
    x = eight_bit()
    bits = [4, 4, 4, 3, 3, 2, 1, 1]  # 4 − ⌊4·level⌋, at least 1
    for image, level, kept in zip(x, LEVELS, bits, strict=True):
        found = bytes_of(posterize(image[None], level[None])[0])
        assert torch.equal(found, tv.posterize(bytes_of(image), kept))


def test_solarize_is_torchvision_s():
    x = eight_bit()
    expected = torch.stack([tv.solarize(image, 1 - level) for image, level in zip(x, LEVELS, strict=True)])
    torch.testing.assert_close(solarize(x, LEVELS), expected)


def by_torchvision(image, kind, level):
    """The warp of one image: torchvision turns the object, ours the place where it is looked up."""
    height, width = image.shape[1:]
    angle, shift, shear = 0.0, [0.0, 0.0], [0.0, 0.0]
    slope = float(np.degrees(np.arctan(0.3 * level)))
    if kind == 0:
        angle = -30 * level
    if kind == 1:
        shear = [slope, 0.0]
    if kind == 2:
        shear = [0.0, slope]
    if kind == 3:
        shift = [-level * width / 3, 0.0]
    if kind == 4:
        shift = [0.0, -level * height / 3]
    return tv.affine(image, angle, shift, 1.0, shear, InterpolationMode.BILINEAR)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("kind", range(5))
def test_warps_are_torchvision_s(kind, sign):
    x, levels = eight_bit(), sign * LEVELS * 0.3
    found = warp(x, torch.full((8,), kind), levels)
    for image, own, level in zip(x, found, levels.tolist(), strict=True):
        # torchvision's own black comes in hard where ours fades over one pixel: the rim is left out.
        inner = (slice(None), slice(10, -10), slice(14, -14))
        expected = by_torchvision(image, kind, level)
        torch.testing.assert_close(own[inner], expected[inner], atol=2e-4, rtol=0)
        assert not torch.equal(own, image)


def test_every_image_gets_its_own_operation():
    x, levels = eight_bit(11), torch.full((11,), 0.3)
    kinds = torch.arange(11)
    found = operation(x, kinds, levels, -levels)
    single = {0: autocontrast, 1: equalize}
    for kind in range(11):
        image, level = x[kind : kind + 1], levels[:1]
        if kind in single:
            expected = single[kind](image)
        elif kind in (2, 3):
            expected = (posterize if kind == 2 else solarize)(image, level)
        elif kind < 9:
            expected = warp(image, torch.tensor([kind - 4]), -level)
        else:
            expected = image  # no such operation
        torch.testing.assert_close(found[kind : kind + 1], expected)


def test_black_comes_in():
    moved = warp(torch.ones(1, 1, 6, 6), torch.tensor([3]), torch.tensor([1.0]))
    assert moved[0, 0, 0].tolist() == pytest.approx([1, 1, 1, 1, 0, 0])


def test_images_keep_shape_dtype_and_box_and_change():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = images(16, shape=SHAPE, dtype=dtype)
        before = x.clone()
        found = AugMix(severity=10.0)(x, generator=generator())
        assert found.dtype == dtype and found.shape == x.shape and torch.equal(x, before)
        assert found.min() >= 0 and found.max() <= 1
        assert ((found - x).abs().flatten(1).mean(dim=1) > 1e-3).all()
    assert AugMix()(images(16)[:0]).shape == (0, 3, 8, 8)


def test_an_image_is_augmented_alike_alone_and_in_a_batch_and_each_call_anew():
    x = images(6, shape=SHAPE)
    whole = AugMix()(x, generator=generator(3))
    alone = torch.cat([AugMix()(image[None], generator=generator(3)) for image in x])
    torch.testing.assert_close(whole, alone)
    assert torch.equal(whole, AugMix()(x, generator=generator(3)))
    shared = generator(3)
    assert torch.equal(AugMix()(x, generator=shared), whole)
    assert not torch.equal(AugMix()(x, generator=shared), whole)
    assert torch.equal(AugMix()(x), AugMix()(x))


def test_weights_and_share_are_uniform(monkeypatch):
    """With white from the first chain and black from the others, the result is (1 − m)·x + m·w_1."""
    n, calls = 3000, []
    x = torch.rand(n, 1, 1, 1, generator=generator(9), dtype=torch.float64)

    def chain(self, image, u):
        calls.append(u)
        return torch.full_like(image, float(len(calls) == 1))

    monkeypatch.setattr(AugMix, "_chain", chain)
    mixed = AugMix()(x, generator=generator(1))
    black = AugMix()(x, generator=generator(1))  # its chains are called fourth to sixth
    m = 1 - black / x
    w = (mixed - black) / m
    # Chance of a false alarm: 1 in 10,000 each; 4 standard errors for the correlation.
    assert len(calls) == 6
    assert stats.kstest(m.flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(w.flatten().numpy(), stats.beta(1, 2).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(m.flatten().numpy(), w.flatten().numpy())[0, 1]) < 4 / np.sqrt(n)


def test_chains_are_of_every_length_and_kind(monkeypatch):
    n, kinds, levels = 2000, [], []

    def note(image, kind, level, signed):
        kinds.append(kind)
        levels.append((level, signed))
        return image + 1

    monkeypatch.setattr("poise.defenses.augmix.operation", note)
    x = torch.zeros(n, 1, 1, 1)
    u = torch.rand(n, 10, generator=generator(4))
    lengths = AugMix(severity=3.0)._chain(x, u).flatten()
    for found, of in ((lengths, [1, 2, 3]), (torch.cat(kinds), list(range(9)))):
        values, counts = np.unique(found.numpy(), return_counts=True)
        assert values.tolist() == of and stats.chisquare(counts).pvalue > 1e-4
    level, signed = (torch.cat(part) for part in zip(*levels, strict=True))
    assert stats.kstest(level.numpy(), stats.uniform(0.01, 0.29).cdf).pvalue > 1e-4
    assert torch.equal(level, signed.abs()) and abs((signed > 0).double().mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("argument", "value"),
    [("severity", 0.0), ("severity", 11.0), ("width", 0), ("depth", 0), ("depth", 1.5)],
)
def test_a_value_out_of_range_is_refused_by_its_name(argument, value):
    with pytest.raises(InputError, match=f"{argument}.*{value!r}"):
        AugMix(**{argument: value})
