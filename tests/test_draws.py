"""Random numbers: uniform, independent over images, pixels and counts, and the same in any batch.

Statistical bounds lie at 5 sigma: a two-sided error rate of 6e-7 for each comparison, so below
1e-4 for all the comparisons in this file together.
"""

import math
import random

import numpy as np
import pytest
import torch

from nets import images
from poise.draws import Draw

SEEDS = range(5)
SIGMAS = 5


def generator(seed):
    return torch.Generator().manual_seed(seed)


def uniform(seed, n=8, shape=(3, 32, 32), dtype=torch.float64, count=0):
    x = images(n, seed, shape=shape, dtype=dtype)
    return Draw.of(x, generator(seed)).at(count).uniform(x)


def correlation(a, b):
    """Times the square root of the number of pairs: standard normal where they are independent."""
    a, b = ((v.flatten() - 0.5) * math.sqrt(12) for v in (a, b))
    return (a * b).mean() * math.sqrt(a.numel())


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_has_the_mean_and_variance_of_the_uniform(seed):
    u = uniform(seed)
    n = u.numel()
    assert (u.mean() - 1 / 2).abs() < SIGMAS * math.sqrt(1 / 12 / n)
    # (u − 1/2)² has mean 1/12 and variance 1/80 − 1/144 = 1/180.
    assert ((u - 0.5).square().mean() - 1 / 12).abs() < SIGMAS * math.sqrt(1 / 180 / n)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_fills_all_its_sixteenths_alike(seed):
    u = uniform(seed)
    counts = torch.histc(u, bins=16, min=0, max=1)
    expected = u.numel() / 16
    assert ((counts - expected).abs() < SIGMAS * math.sqrt(expected * 15 / 16)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_images_pixels_counts_and_seeds_are_independent(seed):
    u = uniform(seed)
    pairs = {
        "one image and the next": (u[:-1], u[1:]),
        "one pixel and the next": (u[..., :-1], u[..., 1:]),
        "one row and the next": (u[..., :-1, :], u[..., 1:, :]),
        "one count and the next": (u, uniform(seed, count=1)),
        "one count and the next of the pixel before": (
            u.flatten(1)[:, 1:],
            uniform(seed, count=1).flatten(1)[:, :-1],
        ),
        "a far count": (u, uniform(seed, count=1000)),
        "another generator": (u, Draw.of(images(8, seed, shape=(3, 32, 32))).uniform(u)),
    }
    for name, (a, b) in pairs.items():
        assert correlation(a, b).abs() < SIGMAS, name


@pytest.mark.parametrize("seed", SEEDS)
def test_images_that_differ_in_the_last_bit_of_one_pixel_have_independent_streams(seed):
    x = images(1, seed, shape=(3, 32, 32)).clamp_min(0.5)
    near = x.clone()
    near[0, 0, 0, 0] -= 2.0**-24
    a, b = (Draw.of(image, generator(seed)).uniform(x) for image in (x, near))
    assert correlation(a, b).abs() < SIGMAS


@pytest.mark.parametrize("seed", SEEDS)
def test_images_with_the_same_pixels_in_another_order_have_independent_streams(seed):
    x = images(1, seed, shape=(3, 32, 32))
    a, b = (Draw.of(image).uniform(x) for image in (x, x.flip(3)))
    assert correlation(a, b).abs() < SIGMAS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_number_lies_in_the_open_interval_in_every_dtype(dtype):
    for seed in SEEDS:
        u = uniform(seed, dtype=dtype)
        assert u.dtype == dtype
        assert bool(((u > 0) & (u < 1)).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_has_the_moments_of_the_normal(seed):
    x = images(8, seed, shape=(3, 32, 32), dtype=torch.float64)
    z = Draw.of(x, generator(seed)).normal(x)
    n = z.numel()
    # Mean 0, variance 1, fourth moment 3: sigmas of 1, √2 and √96 over √n.
    assert z.mean().abs() < SIGMAS / math.sqrt(n)
    assert (z.square().mean() - 1).abs() < SIGMAS * math.sqrt(2 / n)
    assert (z.pow(4).mean() - 3).abs() < SIGMAS * math.sqrt(96 / n)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_number_an_image_is_uniform_and_apart_from_the_pixels(seed):
    x = images(3000, seed, shape=(1, 1, 2), dtype=torch.float64)
    draw = Draw.of(x, generator(seed))
    each = draw.uniform_each(x.flatten(1)[:, 0])
    assert each.shape == (3000,)
    assert (each.mean() - 0.5).abs() < SIGMAS * math.sqrt(1 / 12 / len(each))
    assert correlation(each, draw.uniform(x).flatten(1)[:, 0]).abs() < SIGMAS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["uniform", "normal"])
def test_an_image_alone_gets_the_bits_that_it_gets_in_a_batch(method, dtype):
    x = images(7, dtype=dtype)
    batch = getattr(Draw.of(x, generator(3)).at(4), method)(x)
    shuffled = x[torch.tensor([5, 2, 6, 0, 1, 4, 3])]
    for i, image in enumerate(x):
        alone = getattr(Draw.of(image[None], generator(3)).at(4), method)(image[None])
        assert torch.equal(alone[0], batch[i])
    again = getattr(Draw.of(shuffled, generator(3)).at(4), method)(shuffled)
    assert torch.equal(again[0], batch[5])


def test_the_memory_layout_of_a_batch_changes_nothing():
    x = images(4)
    layouts = (x, x.to(memory_format=torch.channels_last), x.expand(2, -1, -1, -1, -1)[1])
    first, *others = (Draw.of(layout).uniform(x) for layout in layouts)
    assert all(torch.equal(first, other) for other in others)


def test_the_same_seed_gives_the_same_bits_and_no_generator_is_seed_zero_of_its_own():
    x = images(4)
    assert torch.equal(Draw.of(x, generator(1)).uniform(x), Draw.of(x, generator(1)).uniform(x))
    assert torch.equal(Draw.of(x).uniform(x), Draw.of(x).uniform(x))
    assert not torch.equal(Draw.of(x, generator(1)).uniform(x), Draw.of(x, generator(2)).uniform(x))


@pytest.mark.parametrize("n", [0, 1, 6])
def test_the_generator_moves_on_by_one_number_whatever_the_batch(n):
    used, expected = generator(9), generator(9)
    x = images(n)
    draw = Draw.of(x, used)
    draw.uniform(x), draw.at(5).normal(x)
    torch.randint(2**62, (), generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


def test_two_draws_from_one_generator_differ():
    x, shared = images(4), generator(0)
    assert not torch.equal(Draw.of(x, shared).uniform(x), Draw.of(x, shared).uniform(x))


@pytest.mark.parametrize("source", [None, 5])
def test_nobody_s_random_state_is_touched(source):
    x = images(4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    draw = Draw.of(x, None if source is None else generator(source))
    draw.uniform(x), draw.normal(x), draw.uniform_each(x.flatten(1)[:, 0])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_an_empty_batch_draws_nothing():
    x = images(0)
    assert Draw.of(x).uniform(x).shape == x.shape
