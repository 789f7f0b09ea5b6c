"""Laws of the balls, for every norm in the table."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nets import images
from poise import InputError
from poise.draws import Draw
from poise.threat import BALLS, Linf, ball

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}  # a new norm needs a line here
DUAL = {"linf": 1.0, "l2": 2.0}

SHAPES = st.sampled_from([(1, 1, 1), (1, 2, 3), (3, 8, 8), (3, 16, 16)])
SEEDS = st.integers(0, 2**31)
RADII = st.floats(0, 1)
every_norm = pytest.mark.parametrize("norm", BALLS)


def length(delta, order):
    """The norm of every image's change, in float64."""
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=order, dim=1)


def slack(norm, eps, shape):
    """What float32 may add to a length: half an ulp of 1 a pixel, and some ulps of the scaling."""
    pixels = torch.full((1, *shape), 2.0**-24)
    return length(pixels, ORDER[norm]) + 1e-6 * eps


def directions(seed, n, shape, scale=1.0):
    """Normal numbers of that size."""
    return scale * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def draw_of(center, seed):
    return Draw.of(center, torch.Generator().manual_seed(seed))


@every_norm
@given(seed=SEEDS, shape=SHAPES, eps=RADII, scale=st.sampled_from([1e-4, 0.1, 1.0, 100.0]))
def test_a_projection_lies_in_the_ball_and_in_the_box(norm, seed, shape, eps, scale):
    center = images(4, seed, shape=shape)
    inside = ball(norm, eps).project(center + directions(seed, 4, shape, scale), center, Draw.of(center))
    assert ((inside >= 0) & (inside <= 1)).all()
    assert (length(inside - center, ORDER[norm]) <= eps + slack(norm, eps, shape)).all()


@every_norm
@given(seed=SEEDS, shape=SHAPES, eps=RADII, scale=st.sampled_from([1e-4, 0.1, 1.0, 100.0]))
def test_a_projection_projects_onto_itself(norm, seed, shape, eps, scale):
    center = images(4, seed, shape=shape)
    once = ball(norm, eps).project(center + directions(seed, 4, shape, scale), center, Draw.of(center))
    twice = ball(norm, eps).project(once, center, Draw.of(center))
    torch.testing.assert_close(twice, once, rtol=0, atol=3e-7)


@every_norm
@given(seed=SEEDS, shape=SHAPES, eps=st.floats(1e-3, 1), share=st.floats(0, 0.99))
def test_a_point_of_the_ball_and_the_box_is_left_alone(norm, seed, shape, eps, share):
    center = images(4, seed, shape=shape)
    way = directions(seed, 4, shape)
    way = way * (share * eps / length(way, ORDER[norm])).float()[:, None, None, None]
    x = (center + way).clamp(0, 1)
    torch.testing.assert_close(ball(norm, eps).project(x, center, Draw.of(center)), x, rtol=0, atol=1.2e-7)


@every_norm
@given(seed=SEEDS, shape=SHAPES, scale=st.sampled_from([1.0, 100.0]))
def test_a_ball_of_radius_zero_is_its_centre(norm, seed, shape, scale):
    center = images(4, seed, shape=shape)
    point = ball(norm, 0.0).project(center + directions(seed, 4, shape, scale), center, Draw.of(center))
    torch.testing.assert_close(point, center, rtol=0, atol=0)


@every_norm
@given(seed=SEEDS, shape=SHAPES)
def test_a_far_point_is_brought_to_the_surface_where_the_box_is_far(norm, seed, shape):
    center = torch.full((4, *shape), 0.5)
    eps = 0.25
    inside = ball(norm, eps).project(center + directions(seed, 4, shape, 1e3), center, Draw.of(center))
    reached = length(inside - center, ORDER[norm])
    torch.testing.assert_close(reached, torch.full_like(reached, eps), rtol=1e-5, atol=2e-6)


@every_norm
@given(seed=SEEDS, shape=SHAPES, eps=RADII)
def test_a_sample_lies_in_the_ball_and_in_the_box(norm, seed, shape, eps):
    center = images(4, seed, shape=shape)
    x = ball(norm, eps).sample(center, draw_of(center, seed))
    assert ((x >= 0) & (x <= 1)).all()
    assert (length(x - center, ORDER[norm]) <= eps + slack(norm, eps, shape)).all()


SCALES = st.sampled_from([1e-30, 1e-10, 1.0, 1e10, 1e30])


def gradients(seed, shape, scale, spread):
    """Of that size; the larger the spread, the fewer pixels carry the most of them."""
    grad = directions(seed, 4, shape)
    return scale * grad.sign() * grad.abs() ** (1 + spread)


@every_norm
@given(seed=SEEDS, shape=SHAPES, scale=SCALES, spread=st.floats(0, 3))
def test_the_steepest_direction_has_size_one_and_rises(norm, seed, shape, scale, spread):
    grad = gradients(seed, shape, scale, spread)
    steepest = ball(norm, 0.1).steepest(grad).double()
    size = length(steepest, ORDER[norm])
    torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-5, atol=0)
    assert ((grad.double() * steepest).flatten(1).sum(dim=1) > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])  # in L1 it would be a single pixel: no way to attack
@given(seed=SEEDS, shape=SHAPES, scale=SCALES, spread=st.floats(0, 3))
def test_no_direction_of_size_one_rises_faster_than_the_steepest(norm, seed, shape, scale, spread):
    """g · d = ‖g‖ in the dual norm, which bounds g · d for every d of size 1 (Hölder)."""
    grad = gradients(seed, shape, scale, spread)
    rise = (grad.double() * ball(norm, 0.1).steepest(grad).double()).flatten(1).sum(dim=1)
    torch.testing.assert_close(rise, length(grad, DUAL[norm]), rtol=1e-5, atol=0)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_gives_no_direction_and_no_neighbour_in_the_batch_changes_that(norm, dtype):
    grad = directions(0, 3, (3, 8, 8)).to(dtype)
    grad[1] = 0
    steepest = ball(norm, 0.1).steepest(grad)
    assert torch.equal(steepest[1], torch.zeros_like(grad[1]))
    assert (length(steepest[[0, 2]], ORDER[norm]) > 0.99).all()


@every_norm
@pytest.mark.parametrize("method", ["project", "steepest", "sample"])
def test_an_empty_batch_stays_empty(norm, method):
    none = images(0)
    here = ball(norm, 0.1)
    calls = {
        "project": lambda: here.project(none, none, Draw.of(none)),
        "steepest": lambda: here.steepest(none),
        "sample": lambda: here.sample(none, Draw.of(none)),
    }
    assert calls[method]().shape == none.shape


@pytest.mark.parametrize("seed", range(5))
def test_linf_samples_every_pixel_uniformly(seed):
    center = 0.25 + 0.5 * images(8, seed, shape=(3, 32, 32), dtype=torch.float64)
    moved = (ball("linf", 0.2).sample(center, draw_of(center, seed)) - center) / 0.2
    n = moved.numel()
    # Uniform on (−1, 1): mean 0 and variance 1/3; its square has mean 1/3 and variance 4/45.
    # Bounds of 5 sigma, ten comparisons in all: error rate 6e-6.
    assert moved.mean().abs() < 5 * math.sqrt(1 / 3 / n)
    assert (moved.square().mean() - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("seed", range(5))
def test_l2_samples_the_volume_uniformly(seed):
    shape = (1, 1, 2)
    center = 0.45 + 0.1 * images(4000, seed, shape=shape, dtype=torch.float64)
    moved = (ball("l2", 0.4).sample(center, draw_of(center, seed)) - center).flatten(1) / 0.4
    # On the unit disc r² is uniform on (0, 1): mean 1/2 and variance 1/12. A coordinate has mean 0
    # and variance 1/4. Bounds of 5 sigma, fifteen comparisons in all: error rate 9e-6.
    n = len(moved)
    assert (moved.square().sum(dim=1).mean() - 0.5).abs() < 5 * math.sqrt(1 / 12 / n)
    assert (moved.mean(dim=0).abs() < 5 * math.sqrt(1 / 4 / n)).all()


def test_linf_by_hand():
    # Round .5 with eps .25: 0 → .25, .6 stays, 1 → .75. Round .9: 2 → 1.15 → 1 by the box.
    center = torch.tensor([0.5, 0.5, 0.5, 0.9], dtype=torch.float64).reshape(1, 1, 1, 4)
    x = torch.tensor([0.0, 0.6, 1.0, 2.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    torch.testing.assert_close(
        Linf(0.25).project(x, center).flatten(), torch.tensor([0.25, 0.6, 0.75, 1.0], dtype=torch.float64)
    )


def test_l2_by_hand():
    # Two images, each with its own factor: (3, 4) has length 5 and comes to (.6, .8) at eps 1;
    # (.3, .4) has length .5 and stays.
    center = torch.zeros(2, 1, 1, 2)
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]]).reshape(2, 1, 1, 2)
    torch.testing.assert_close(
        ball("l2", 1.0).project(x, center, Draw.of(center)).flatten(),
        torch.tensor([0.6, 0.8, 0.3, 0.4]),
    )


@every_norm
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_radius_that_is_none_is_refused(norm, eps):
    with pytest.raises(InputError, match="eps must be a number"):
        ball(norm, eps)


def test_an_linf_radius_on_the_scale_of_bytes_is_refused():
    with pytest.raises(InputError, match=r"eps must be a number in \[0, 1\], got 8.*pixel units.*8/255"):
        ball("linf", 8)


def test_an_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown norm 'l_2': did you mean l2"):
        ball("l_2", 0.1)
