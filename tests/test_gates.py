"""What the loop may cost, counted: passes, parameter gradients, host synchronisations, live tensors."""

import copy
import gc
import importlib
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nets import Counting, conv_net, images
from poise import attacks

LOOPS = (
    "pgd",
    "apgd_ce",
    "apgd_dlr",
    "dropout",
    "adaptive",
    "confsmooth",
    "auto",
    "overconfidence",
    "target_confidence",
)
each_loop = pytest.mark.parametrize("name", LOOPS)


class Ops(TorchDispatchMode):
    """Counts every operation by name."""

    def __init__(self):
        super().__init__()
        self.count = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def ops(name, steps):
    with Ops() as counter:
        attacks.build(name, steps=steps)(conv_net(0), images(4))
    return counter.count


@each_loop
def test_the_loop_never_waits_for_the_device(name):
    """A number read by Python is one `_local_scalar_dense`: as many for 3 steps as for 9."""
    few, many = (ops(name, steps).get("aten._local_scalar_dense", 0) for steps in (3, 9))
    assert few == many < 12


@pytest.mark.parametrize(("name", "most"), [("confsmooth", 113), ("adaptive", 108), ("auto", 142)])
def test_no_more_operations_a_step_than_were_counted(name, most):
    """On a small net they are a part of the time that counts; the net's own are among them."""
    few, many = (sum(ops(name, steps).values()) for steps in (3, 9))
    assert (many - few) / 6 <= most


@each_loop
def test_no_parameter_gets_a_gradient_not_even_in_passing(name):
    seen = []
    net = copy.deepcopy(conv_net(0))  # which other tests' rivals may have left gradients in
    hooks = [p.register_hook(seen.append) for p in net.parameters()]
    attacks.build(name, steps=3)(net, images(4))
    for hook in hooks:
        hook.remove()
    assert not seen and all(p.grad is None for p in net.parameters())


@each_loop
@pytest.mark.parametrize("steps", [1, 7])
def test_forwards_and_backwards(name, steps):
    net = Counting(conv_net(0))
    attacks.build(name, steps=steps)(net, images(4))
    assert net.backwards == steps
    assert net.forwards == steps + (6 if name == "auto" else 1)


@each_loop
def test_memory_does_not_grow_with_the_steps(name):
    """The tensors alive at a forward late in a long attack are as many as in a short one."""
    gc.collect()
    gc.freeze()  # what is there before is neither searched nor counted: all of torch, at every forward

    def alive(steps):
        counts = []
        net = conv_net(0)

        def model(x):
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
            return net(x)

        attacks.build(name, steps=steps)(model, images(2))
        return counts[steps - 1]

    try:
        assert 0 < alive(9) <= alive(4) + 2
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", ["fast", "rules", "objectives", "threat", "draws"])
def test_the_rooms_that_the_documents_name_are_attributes_of_the_package(name, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "poise"]:
        monkeypatch.delitem(sys.modules, module)  # where nothing else has loaded it
    fresh = importlib.import_module("poise")
    assert getattr(fresh, name).__name__ == f"poise.{name}" and name in dir(fresh)
