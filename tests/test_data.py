"""Data sets: what is in them, in which order, and which subset is drawn."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from poise import InputError, data
from poise.data import DATASETS, ImageSet
from poise.preparation import Preparation


def lay_out(archive, top, splits):
    """Some files of an archive of encoded images as TOP/SPLIT/CLASS/FILE, bit for bit."""
    arrays = np.load(archive)
    body, offset = arrays["body"].tobytes(), arrays["offset"]
    for split, number in splits.items():
        for label, kind in enumerate(arrays["classes"]):
            folder = top / split / str(kind)
            folder.mkdir(parents=True)
            of_class = np.flatnonzero((arrays["label"] == label) & (arrays["split"] == (split == "test")))
            for i in of_class[:number]:
                (folder / f"{i:05d}.jpg").write_bytes(body[offset[i] : offset[i + 1]])


@pytest.fixture(scope="session")
def folders_root(shared_data, tmp_path_factory):
    """A root with the first files of the three transfer sets and of the ImageNet sample."""
    root = tmp_path_factory.mktemp("folders")
    for name, archive in (("chest", "chest_xray3"), ("busi", "busi"), ("mstar", "mstar11_chips")):
        lay_out(shared_data / f"{archive}_jpeg.npz", root / name, {"train": 2, "test": 3})
    arrays = np.load(shared_data / "imagenet_sample_jpeg.npz")
    body, offset = arrays["body"].tobytes(), arrays["offset"]
    for place, split in enumerate(("train", "val")):
        for wnid in arrays["wnid"]:
            (root / "imagenet" / split / str(wnid)).mkdir(parents=True)
        for i in range(place, 400, 40):
            wnid = str(arrays["wnid"][arrays["label"][i]])
            (root / "imagenet" / split / wnid / "a.jpg").write_bytes(body[offset[i] : offset[i + 1]])
    return root


def pickled(path, content):
    """The content as a pickle at the path, and torchvision's (name, md5) of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.fixture(scope="session")
def cifar_root(shared_data, tmp_path_factory):
    """Original CIFAR images in the layout that torchvision reads, with the md5s that it then expects."""
    root = tmp_path_factory.mktemp("cifar")
    with pytest.MonkeyPatch.context() as patch:
        for kind, key, labels, parts in (
            (CIFAR10, "label_names", "labels", 5),
            (CIFAR100, "fine_label_names", "fine_labels", 1),
        ):
            arrays = np.load(shared_data / f"{kind.__name__.lower()}_exact_subset.npz")
            top, lists = root / kind.base_folder, {}
            for split, number in (("train", parts), ("test", 1)):
                pixels = arrays[f"x_{split}"].transpose(0, 3, 1, 2).reshape(len(arrays[f"x_{split}"]), -1)
                cut = zip(
                    np.array_split(pixels, number),
                    np.array_split(arrays[f"y_{split}"], number),
                    strict=True,
                )
                lists[split] = [
                    pickled(top / f"{split}{k}", {"data": x, labels: y.tolist()})
                    for k, (x, y) in enumerate(cut)
                ]
            names = [f"kind {k}" for k in range(10 if parts == 5 else 100)]
            name, md5 = pickled(top / "meta", {key: names})
            patch.setattr(kind, "meta", {"filename": name, "key": key, "md5": md5})
            patch.setattr(kind, "train_list", lists["train"])
            patch.setattr(kind, "test_list", lists["test"])
        yield root


ROOTS = {"mnist": "mnist_root", "cifar10": "cifar_root", "cifar100": "cifar_root"}
COUNTED = {}  # (name, split) -> the rows of a whole set, which take a second to count
ALLOW_EMPTY = {"preparation": Preparation(allow_empty=True)}


@pytest.fixture
def load(request):
    """`poise.data.load`, told where a data set's files lie; digits have none."""

    def loaded(name, **options):
        fixture = ROOTS.get(name, "folders_root")
        root = "nowhere" if name == "digits" else request.getfixturevalue(fixture)
        return data.load(name, root=root, **(ALLOW_EMPTY if name == "imagenet" else {}) | options)

    return loaded


def pixels_of(images):
    """All pixels of a set, decoded."""
    if isinstance(images.pixels, torch.Tensor):
        return images.pixels
    return images.pixels.read(torch.arange(len(images)))


def rows(images):
    """Every image with its label, as bytes that can be counted."""
    return [
        (x.to(torch.uint8).numpy().tobytes(), int(y))
        for x, y in zip(pixels_of(images), images.y, strict=True)
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


# every data set


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_float32_images_in_the_unit_range(name, split, load):
    few = len(load(name, split=split)) < 300
    images = load(name, split=split, images=4 if few else 300, batch_size=3 if few else 128)
    batches = list(images)
    assert [len(x) for x, _ in batches] == ([3, 1] if few else [128, 128, 44])
    assert len(images) == (4 if few else 300)
    for x, y in batches:
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.shape == (len(y), *images.shape)
        assert x.min() >= 0 and x.max() <= 1
        assert x.max() - x.min() > 0.3 if few else x.max() - x.min() == 1
        assert y.min() >= 0 and y.max() < len(images.classes)


@pytest.mark.parametrize("name", DATASETS)
def test_iterating_twice_gives_the_same_batches(name, load):
    images = load(name, images=min(200, len(load(name))), batch_size=64)
    for (x, y), (again_x, again_y) in zip(images, images, strict=True):
        assert torch.equal(x, again_x) and torch.equal(y, again_y)


@pytest.mark.parametrize("name", DATASETS)
def test_batch_size_cuts_but_does_not_reorder(name, load):
    wanted = min(200, len(load(name)))
    whole, cut = (load(name, images=wanted, batch_size=size) for size in (200, 7))
    assert torch.equal(torch.cat([x for x, _ in cut]), next(iter(whole))[0])
    assert torch.equal(torch.cat([y for _, y in cut]), whole.y)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("wanted", [1, 10, 123, 200])
def test_subset_has_every_class_in_its_share(name, split, wanted, load):
    whole = load(name, split=split)
    wanted, classes = min(wanted, len(whole) - 1), len(whole.classes)
    part = whole.subset(wanted, seed=3)
    share = whole.y.bincount(minlength=classes) * wanted / len(whole)
    assert len(part) == wanted
    assert (part.y.bincount(minlength=classes) - share).abs().max() <= 1
    if (name, split) not in COUNTED:
        COUNTED[name, split] = Counter(rows(whole))
    assert not Counter(rows(part)) - COUNTED[name, split]  # nothing twice, nothing made up


@pytest.mark.parametrize("name", DATASETS)
def test_images_of_load_are_those_of_subset(name, load):
    whole = load(name)
    some = min(50, len(whole) - 1)
    assert rows(load(name, images=some, seed=7)) == rows(whole.subset(some, seed=7))
    assert rows(load(name, images=None)) == rows(whole)


@pytest.mark.parametrize("name", DATASETS)
def test_fingerprints_tell_subsets_apart_and_stay_from_load_to_load(name, load):
    some = min(50, len(load(name)) - 1)
    first, again = (load(name, images=some).fingerprint() for _ in range(2))
    assert first == again != load(name).fingerprint()


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_is_prepared_as_asked(name, load):
    images = load(name, images=2, preparation=Preparation(size=9, channels="grey", allow_empty=True))
    [(x, _)] = images
    assert images.shape == (1, 9, 9) and x.shape == (2, 1, 9, 9)


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


# CIFAR


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_has_the_published_pixels_and_labels_in_order(name, classes, split, load, shared_data):
    arrays, images = np.load(shared_data / f"{name}_exact_subset.npz"), load(name, split=split)
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), arrays[f"x_{split}"])
    assert images.y.tolist() == arrays[f"y_{split}"].tolist()
    assert images.classes == tuple(f"kind {k}" for k in range(classes)) and images.shape == (3, 32, 32)


# folders of image files, against torchvision


def seen_by_torchvision(folder, *steps, drop=(), allow_empty=False):
    """torchvision's classes, pixels and labels of a folder of class folders."""
    found = ImageFolder(folder, v2.Compose([*steps, v2.PILToTensor()]), allow_empty=allow_empty)
    kept = [(x, y) for x, y in found if found.classes[y] not in drop]
    return found.classes, torch.stack([x for x, _ in kept]), [y for _, y in kept]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "steps", "drop"),
    [
        ("chest", (v2.Resize(224), v2.CenterCrop(224)), ()),
        ("busi", (v2.Resize(224), v2.CenterCrop(224)), ("normal",)),
        ("mstar", (v2.CenterCrop(64), v2.Resize(224)), ()),
    ],
)
def test_transfer_sets_are_what_torchvision_sees(name, steps, drop, split, load, folders_root):
    images = load(name, split=split)
    classes, pixels, labels = seen_by_torchvision(folders_root / name / split, *steps, drop=drop)
    assert images.classes == tuple(kind for kind in classes if kind not in drop)
    assert torch.equal(pixels_of(images), pixels)
    assert images.y.tolist() == labels
    assert images.y.bincount().tolist() == [3 if split == "test" else 2] * len(images.classes)


def test_chips_of_the_test_target_are_padded_to_the_window(load):
    """SLICY's are 54x54: in a 64x64 window black rows and columns of 5 pixels surround them."""
    images = load("mstar", preparation=Preparation(size=64))
    chip = pixels_of(images.take(images.y == images.classes.index("SLICY")))[0, 0]
    assert chip[:5].max() == chip[-5:].max() == chip[:, :5].max() == chip[:, -5:].max() == 0
    assert chip[5].max() > 0 and chip[-6].max() > 0 and chip[:, 5].max() > 0 and chip[:, -6].max() > 0


@pytest.mark.parametrize(("split", "folder"), [("train", "train"), ("test", "val"), ("val", "val")])
def test_imagenet_is_what_torchvision_sees(split, folder, load, folders_root):
    images = load("imagenet", split=split)
    classes, pixels, labels = seen_by_torchvision(
        folders_root / "imagenet" / folder, v2.Resize(256), v2.CenterCrop(224), allow_empty=True
    )
    assert torch.equal(pixels_of(images), pixels) and images.y.tolist() == labels
    assert [name.split(" ", 1)[0] for name in images.classes] == classes
    titles = [name.split(" ", 1)[1] for name in images.classes]
    assert titles == ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert images.classes[0] == "n01440764 tench"


def test_imagenet_without_some_classes_keeps_the_others_names(load):
    drop = ("n01440764", "n01443537")
    images = load("imagenet", preparation=Preparation(allow_empty=True, drop=drop))
    assert len(images.classes) == 998 and images.classes[0] == "n01484850 great white shark"
    whole = load("imagenet")
    assert [images.classes[y] for y in images.y] == [
        whole.classes[y] for y in whole.y if not whole.classes[y].startswith(drop)
    ]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "chest", "busi", "mstar", "imagenet"])
def test_sets_that_are_not_there_are_refused_with_where_they_belong(name, tmp_path):
    with pytest.raises(InputError) as refusal:
        data.load(name, root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["chest", "busi", "mstar", "imagenet"])
def test_sets_that_cannot_be_downloaded_say_so(name, load):
    with pytest.raises(InputError, match="cannot be downloaded"):
        load(name, download=True)


@pytest.mark.parametrize(
    ("name", "message"), [("chest", "must hold the class folders covid19"), ("imagenet", "1,000 folders")]
)
def test_other_classes_than_the_published_ones_are_refused(name, message, tmp_path):
    for split in ("train", "val", "test"):
        for kind in ("COVID19", "normal", "pneumonia"):
            (tmp_path / name / split / kind).mkdir(parents=True)
    with pytest.raises(InputError, match=message) as refusal:
        data.load(name, root=tmp_path)
    assert "folder:" in str(refusal.value)


# loading


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digitz", {}, "did you mean digits"),
        ("digits", {"split": "val"}, "split must be one of train, test"),
        ("mnist", {"split": "val"}, "split must be one of train, test"),
        ("cifar10", {"split": "val"}, "split must be one of train, test"),
        ("chest", {"split": "val"}, "split must be one of train, test"),
        ("imagenet", {"split": "trian"}, "split must be one of train, test, val"),
        ("folder:.", {"split": "trian"}, "split must be one of train, test, val"),
        ("folders:.", {}, "did you mean folder"),
        ("http://x", {}, "name data as folder:PATH"),
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


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    toy(20, 20).subset(10, seed=1)
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
