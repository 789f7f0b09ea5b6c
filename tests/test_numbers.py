"""Numbers of other kinds than Python's own: they count as what they stand for."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch

from poise import InputError, attacks, defenses


def taken(factory, **options):
    return {name: value for name, value in options.items() if name in inspect.signature(factory).parameters}


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_a_budget_from_numpy_is_the_same_attack(name):
    given = {"eps": 0.25, "step": 0.125, "steps": 8, "queries": 8, "margin": 0.5}
    takes = taken(attacks.ATTACKS[name], **given)
    for kind in (np.float16, np.float32, np.float64, Fraction):
        other = {
            key: np.int64(value) if isinstance(value, int) else kind(value) for key, value in takes.items()
        }
        plain, same = (attacks.build(name, **options) for options in (takes, other))
        assert repr(plain) == repr(same) and plain == same, kind


@pytest.mark.parametrize("name", defenses.DEFENSES)
def test_a_budget_from_numpy_is_the_same_defense(name):
    given = {"eps": 0.25, "step": 0.125, "steps": 8, "beta": 3.0, "rho": 0.5, "smoothing": 0.25}
    takes = taken(defenses.DEFENSES[name], **given)
    other = {
        key: np.int64(value) if isinstance(value, int) else np.float32(value)
        for key, value in takes.items()
    }
    assert repr(defenses.build(name, **takes)) == repr(defenses.build(name, **other))


@pytest.mark.parametrize(
    "value", [True, np.True_, "0.1", torch.tensor(0.1), 0.1j, None, np.float32("nan"), np.array([0.1])]
)
def test_what_is_no_number_is_no_budget(value):
    with pytest.raises(InputError, match="eps must be a number"):
        attacks.pgd(eps=value)
