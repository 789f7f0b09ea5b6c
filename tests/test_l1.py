"""The L1 projection against a solver that knows nothing of it: the nearest point in ball and box."""

import pytest
import torch
from scipy.optimize import minimize

from poise.threat import L1


def nearest(x, center, eps):
    """The nearest point by sequential quadratic programming; up and down are the change's two halves."""
    n = len(x)

    def point(halves):
        return center + halves[:n] - halves[n:]

    found = minimize(
        lambda halves: ((point(halves) - x) ** 2).sum(),
        x0=[0.0] * (2 * n),
        bounds=[(0, 1 - c) for c in center] + [(0, c) for c in center],
        constraints={"type": "ineq", "fun": lambda halves: eps - halves.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return torch.from_numpy(point(found.x))


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4, 1.5, 10.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_projection_is_the_nearest_point(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(6, generator=generator, dtype=torch.float64)
    center[:2] = torch.tensor([0.0, 1.0])  # pixels with no room on one side
    x = center + torch.randn(6, generator=generator, dtype=torch.float64) * [0.1, 0.5, 2.0][seed % 3]
    projected = L1(eps).project(x.reshape(1, 1, 2, 3), center.reshape(1, 1, 2, 3)).flatten()
    expected = nearest(x.numpy(), center.numpy(), eps)
    torch.testing.assert_close(projected, expected, rtol=0, atol=2e-5)
    assert ((projected - x) ** 2).sum() <= ((expected - x) ** 2).sum() + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_equal_changes_share_the_budget_equally(seed):
    x = torch.full((1, 1, 4, 4), 0.5)
    moved = L1(0.8).project(x + 0.3, x)
    torch.testing.assert_close(moved, x + 0.05)
