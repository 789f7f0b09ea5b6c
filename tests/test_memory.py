"""What evaluate, recalibration and features keep: rows, and no tensor for every batch."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from poise import InputError, attacks, evaluate
from poise.metrics import ssim
from poise.recalibration import logits_of
from poise.records import Rows

NET = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval()


def batches(count, size=4, side=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.rand(size, 3, side, side, generator=generator), torch.arange(size) % 5


@pytest.fixture
def frozen():
    """What is there before is neither searched nor counted: all of torch, at every batch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.usefixtures("frozen")
def test_evaluate_keeps_no_tensor_for_a_batch():
    counts = []
    evaluate(NET, batches(12), attacks.pgd(steps=1), on_batch=lambda n: counts.append(tensors()))
    assert len(counts) == 12 and max(counts[2:]) <= counts[1], counts


@pytest.mark.usefixtures("frozen")
def test_logits_of_keeps_no_tensor_for_a_batch():
    counts = []

    def watched():
        for batch in batches(12):
            counts.append(tensors())
            yield batch

    logits_of(NET, watched())
    assert len(counts) == 12 and max(counts[3:]) <= counts[2], counts


def test_peak_memory_does_not_grow_with_the_images():
    """With glibc as users have it: 2 to 4 MiB an image were added before, 200 MiB over these."""
    file = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory", file)
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    found = memory.peaks([32, 112])
    assert found["112"] - found["32"] < 100, found


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 2), (4,), (0, 3), (2, 0, 7, 1, 1)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)])
def test_rows_are_the_parts_in_order(sizes, shape):
    parts = [torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)) for n in sizes]
    rows, wanted = Rows("x"), torch.cat(parts)
    for part in parts:
        rows.add(part)
        part.zero_()  # copied: whoever gave it may fill the same memory again
    assert torch.equal(rows.joined(), wanted) and len(rows) == sum(sizes)


def test_labels_of_other_integer_types_keep_their_values():
    """The first batch's type must not cut the labels of a later one."""
    given = [(torch.rand(1, 3, 8, 8), torch.tensor([1], dtype=t)) for t in (torch.uint8, torch.int64)]
    assert evaluate(NET, given, attacks.pgd(steps=1)).y.dtype == torch.int64


def test_batches_of_two_shapes_are_refused_by_what_differs():
    flexible = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    given = [*batches(1), *batches(1, side=9)]
    with pytest.raises(InputError, match=r"x of shape \(3, 8, 8\) in the first and \(3, 9, 9\)"):
        evaluate(flexible, given, attacks.pgd(steps=1))


@pytest.mark.parametrize("side", [5, 40])
def test_ssim_of_an_image_is_the_same_alone_and_among_others(side):
    """Large batches are compared a part at a time."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.rand(300, 3, side, side, generator=generator) for _ in range(2))
    together, alone = (
        ssim(other, x),
        torch.cat([ssim(o[None], i[None]) for o, i in zip(other, x, strict=True)]),
    )
    assert together.shape == (300,) and torch.equal(together, alone)
