"""Data sets: what is in them, in which order, and which subset is drawn."""

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from poise import InputError, data
from poise.data import DATASETS, ImageSet


@pytest.fixture
def load(request):
    """`poise.data.load`, told where a data set's files lie; digits have none."""

    def loaded(name, **options):
        root = "nowhere" if name == "digits" else request.getfixturevalue(f"{name}_root")
        return data.load(name, root=root, **options)

    return loaded


def rows(images):
    """Every image with its label, as bytes that can be counted."""
    return [
        (x.to(torch.uint8).numpy().tobytes(), int(y)) for x, y in zip(images.pixels, images.y, strict=True)
    ]


def toy(*sizes, side=2):
    """An image set with classes of these sizes, its images told apart by their pixels."""
    n = sum(sizes)
    pixels = torch.arange(n)[:, None].expand(n, side * side).remainder(251).to(torch.uint8)
    y = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return ImageSet(
        "toy", pixels.reshape(n, 1, side, side), y[order], tuple(f"class {k}" for k in range(len(sizes)))
    )


def epoch(images, seed=0, number=0):
    """The labels and first pixels of a shuffled epoch, in order."""
    return torch.cat([torch.stack([x[:, 0, 0, 0], y.float()], 1) for x, y in images.shuffled(seed, number)])


# every data set


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_float32_images_in_the_unit_range(name, split, load):
    images = load(name, split=split, images=300, batch_size=128)
    batches = list(images)
    assert [len(x) for x, _ in batches] == [128, 128, 44] and len(images) == 300
    for x, y in batches:
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.shape == (len(y), *images.shape)
        assert x.min() == 0 and x.max() == 1
        assert y.min() >= 0 and y.max() < len(images.classes)


@pytest.mark.parametrize("name", DATASETS)
def test_iterating_twice_gives_the_same_batches(name, load):
    images = load(name, images=200, batch_size=64)
    for (x, y), (again_x, again_y) in zip(images, images, strict=True):
        assert torch.equal(x, again_x) and torch.equal(y, again_y)


@pytest.mark.parametrize("name", DATASETS)
def test_batch_size_cuts_but_does_not_reorder(name, load):
    whole, cut = (load(name, images=200, batch_size=size) for size in (200, 7))
    assert torch.equal(torch.cat([x for x, _ in cut]), next(iter(whole))[0])
    assert torch.equal(torch.cat([y for _, y in cut]), whole.y)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("wanted", [1, 10, 123, 200])
def test_subset_has_every_class_in_its_share(name, split, wanted, load):
    whole = load(name, split=split)
    part = whole.subset(wanted, seed=3)
    share = whole.y.bincount(minlength=10) * wanted / len(whole)
    assert len(part) == wanted
    assert (part.y.bincount(minlength=10) - share).abs().max() <= 1
    assert not Counter(rows(part)) - Counter(rows(whole))  # nothing twice, nothing made up


@pytest.mark.parametrize("name", DATASETS)
def test_images_of_load_are_those_of_subset(name, load):
    whole = load(name)
    assert rows(load(name, images=50, seed=7)) == rows(whole.subset(50, seed=7))
    assert rows(load(name, images=None)) == rows(whole)


# digits


@pytest.mark.parametrize(("split", "size"), [("train", 1437), ("test", 360)])
def test_digits_have_the_documented_size_and_16_grey_steps(split, size):
    images = data.load("digits", split=split, batch_size=size)
    [(x, y)] = images
    assert len(images) == len(y) == size
    assert images.classes == tuple("0123456789") and images.shape == (1, 8, 8)
    assert torch.equal(16 * x, (16 * x).round())  # exact: sixteenths are binary fractions
    assert set(y.tolist()) == set(range(10))


def test_digits_splits_part_the_source_without_overlap():
    source = load_digits()
    everything = Counter(
        (image.astype("uint8").tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    )
    train, test = (Counter(rows(data.load("digits", split=split))) for split in ("train", "test"))
    assert max(everything.values()) == 1  # so that equal pixels would mean one image in both splits
    assert train + test == everything
    assert not train & test


def test_digits_splits_are_stratified():
    train, test = (data.load("digits", split=split).y.bincount() for split in ("train", "test"))
    assert (test - (train + test) * 360 / 1797).abs().max() < 1


# MNIST


def test_mnist_is_mnist(load):
    train, test = (load("mnist", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.y[:5].tolist() == [7, 2, 1, 0, 4]
    for images in (train, test):
        assert images.classes == tuple("0123456789") and images.shape == (1, 28, 28)
    # the published mean of the training pixels, the 0.1307 of every tutorial
    assert train.pixels.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_mnist_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(InputError, match="poise download mnist") as refusal:
        data.load("mnist", root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refusal.value)
    assert not (tmp_path / "nowhere").exists()


# loading


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digitz", {}, "did you mean digits"),
        ("digits", {"split": "val"}, "split must be one of train, test"),
        ("digits", {"images": 0}, "images must be .* at least 1, got 0"),
        ("digits", {"images": -5}, "images must be .* at least 1, got -5"),
        ("digits", {"images": 361}, "images must be at most 360.* got 361"),
        ("digits", {"images": 2.5}, "images"),
        ("digits", {"batch_size": 0}, "batch_size"),
    ],
)
def test_load_refuses_what_it_cannot_give(name, options, message):
    with pytest.raises(InputError, match=message):
        data.load(name, **options)


# image sets


@pytest.mark.parametrize("sizes", [(50, 50), (700, 200, 100), (400, 30, 20, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_subsets_of_uneven_classes_keep_their_shares(sizes, seed):
    whole = toy(*sizes)
    for wanted in range(1, len(whole) + 1, 13):
        share = torch.tensor(sizes) * wanted / len(whole)
        counts = whole.subset(wanted, seed=seed).y.bincount(minlength=len(sizes))
        assert counts.sum() == wanted
        assert (counts - share).abs().max() <= 1, (wanted, counts)


def test_subset_is_decided_by_its_seed():
    whole = data.load("digits")
    draws = [rows(whole.subset(100, seed=seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] and draws[0] != draws[3] and draws[2] != draws[3]


def test_subset_leaves_images_in_their_old_order_and_the_set_unchanged():
    whole = data.load("digits")
    before = whole.fingerprint()
    place = {row: i for i, row in enumerate(rows(whole))}
    places = [place[row] for row in rows(whole.subset(100))]
    assert places == sorted(places)
    assert whole.fingerprint() == before


@pytest.mark.parametrize("seed", range(3))
def test_subset_is_a_fair_draw_within_a_class(seed):
    # Half of one class of 1,000: the mean place is 499.5 with a deviation of 9.1, and leaves
    # 6 deviations by chance once in 10^9 draws. The first or last half would have 250 or 750.
    pixels = torch.arange(1000).reshape(-1, 1, 1, 1)
    numbered = ImageSet("one", pixels, torch.zeros(1000, dtype=torch.int64), ("only",))
    places = numbered.subset(500, seed=seed).pixels.double()
    assert abs(places.mean() - 499.5) < 6 * 9.2


def test_shuffled_is_a_permutation_that_seed_and_epoch_decide():
    images = toy(100, 100)
    first = epoch(images, seed=0, number=0)
    assert Counter(map(tuple, first.tolist())) == Counter(
        zip((images.pixels[:, 0, 0, 0] / 255).tolist(), images.y.tolist(), strict=True)
    )
    assert torch.equal(first, epoch(images, seed=0, number=0))
    # 200! orders: equal ones by chance do not happen
    orders = [first, epoch(images, 0, 1), epoch(images, 1, 0), epoch(images, 1, 1)]
    orders.append(torch.cat([torch.stack([x[:, 0, 0, 0], y.float()], 1) for x, y in images]))
    for i, order in enumerate(orders):
        assert not any(torch.equal(order, other) for other in orders[:i])


def test_shuffling_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    epoch(toy(20, 20).subset(10, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def changed(images, *, pixel=False, label=False, order=False, scale=False):
    """The set with one thing changed."""
    pixels, y = images.pixels.clone(), images.y.clone()
    if pixel:
        pixels[-1, 0, 0, 0] += 1
    if label:
        y[-1] = 1 - y[-1]
    if order:
        pixels, y = pixels.flip(0), y.flip(0)
    return ImageSet("toy", pixels, y, images.classes, scale=254 if scale else 255)


@pytest.mark.parametrize("what", ["pixel", "label", "order", "scale"])
def test_fingerprint_changes_with_the_content(what):
    images = toy(10, 10)
    assert changed(images, **{what: True}).fingerprint() != images.fingerprint()


def test_fingerprint_is_of_the_content_alone():
    images = toy(10, 10)
    assert changed(images).fingerprint() == images.fingerprint()
    assert images.batched(3).fingerprint() == images.fingerprint()
    transposed = ImageSet(
        "other name", images.pixels.transpose(2, 3).contiguous().transpose(2, 3), images.y, images.classes
    )
    assert transposed.fingerprint() == images.fingerprint()


def test_subset_keeps_every_quota_with_one_large_and_many_small_classes():
    y = torch.cat([torch.zeros(1000), torch.arange(1, 101).repeat_interleave(5)]).long()
    pixels = torch.zeros(len(y), 1, 1, 1, dtype=torch.uint8)
    chosen = ImageSet("skewed", pixels, y, tuple(map(str, range(101)))).subset(140)
    share = torch.bincount(y) * 140 / len(y)
    assert (torch.bincount(chosen.y, minlength=101) - share).abs().max() < 1 and len(chosen) == 140
