"""Arrays in .npz files, in MedMNIST's layout."""

import io
import pickle

import numpy as np
import pytest
import torch

from poise import InputError, data
from poise.data import Preparation
from poise.data.npz import _map

SPLITS = ("train", "val", "test")
SHAPES = {  # of MedMNIST's 18 sets: an image's shape, labels an image, classes
    "pathmnist": ((28, 28, 3), 1, 9),
    "chestmnist": ((28, 28), 14, 2),
    "dermamnist": ((28, 28, 3), 1, 7),
    "octmnist": ((28, 28), 1, 4),
    "pneumoniamnist": ((28, 28), 1, 2),
    "retinamnist": ((28, 28, 3), 1, 5),
    "breastmnist": ((28, 28), 1, 2),
    "bloodmnist": ((28, 28, 3), 1, 8),
    "tissuemnist": ((28, 28), 1, 8),
    "organamnist": ((28, 28), 1, 11),
    "organcmnist": ((28, 28), 1, 11),
    "organsmnist": ((28, 28), 1, 11),
    "organmnist3d": ((28, 28, 28), 1, 11),
    "nodulemnist3d": ((28, 28, 28), 1, 2),
    "adrenalmnist3d": ((28, 28, 28), 1, 2),
    "fracturemnist3d": ((28, 28, 28), 1, 3),
    "vesselmnist3d": ((28, 28, 28), 1, 2),
    "synapsemnist3d": ((28, 28, 28), 1, 2),
}


def arrays(shape=(4, 4), width=1, classes=3, n=12, dtype=np.uint8):
    """Noise in three splits; every class is there."""
    draw, top = np.random.default_rng(0), np.iinfo(dtype).max + 1
    found = {}
    for split in SPLITS:
        found[f"{split}_images"] = draw.integers(0, top, (n, *shape), dtype=dtype)
        found[f"{split}_labels"] = ((np.arange(n)[:, None] + np.arange(width)) % classes).astype(np.uint8)
    return found


def write(path, *, compress=False, **changes):
    """The arrays with these changes in a file; None takes one away."""
    content = {k: v for k, v in (arrays() | changes).items() if v is not None}
    (np.savez_compressed if compress else np.savez)(path, **content)
    return f"npz:{path}"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_medmnist_is_read(name, compress, tmp_path):
    shape, width, classes = SHAPES[name]
    given = arrays(shape, width, classes)
    path = write(tmp_path / f"{name}.npz", compress=compress, **given)
    for split in SPLITS:
        images = data.load(path + ("#3" if width > 1 else ""), split=split, batch_size=5)
        x = torch.cat([x for x, _ in images])
        pixels = given[f"{split}_images"]
        wanted = pixels[:, None] if len(shape) == 2 else pixels
        wanted = wanted.transpose(0, 3, 1, 2) if shape[-1] == 3 else wanted
        assert np.array_equal((255 * x).round().numpy(), wanted)
        assert images.y.tolist() == given[f"{split}_labels"][:, 3 if width > 1 else 0].tolist()
        assert len(images.classes) == classes
        assert images.name == (f"{name}#3" if width > 1 else name)


def test_labels_in_one_dimension_and_names_of_classes(tmp_path):
    flat = {f"{split}_labels": np.arange(12, dtype=np.int32) % 3 for split in SPLITS}
    images = data.load(write(tmp_path / "x.npz", **flat, classes=np.array(["cat", "Ähre", "dog"])))
    assert images.classes == ("cat", "Ähre", "dog") and images.y.tolist() == [0, 1, 2] * 4


def test_names_may_be_of_classes_that_have_no_images(tmp_path):
    assert len(data.load(write(tmp_path / "x.npz", classes=np.array(list("abcde")))).classes) == 5


def test_classes_are_counted_over_all_splits(tmp_path):
    few = np.zeros((12, 1), np.uint8)
    images = data.load(write(tmp_path / "x.npz", test_labels=few))
    assert images.classes == ("0", "1", "2") and images.y.tolist() == [0] * 12


def test_a_label_column_is_a_task_of_two_classes(tmp_path):
    given = arrays(width=3, classes=2) | {"classes": np.array(["hernia", "edema", "mass"])}
    images = data.load(write(tmp_path / "x.npz", **given) + "#1")
    assert images.classes == ("no edema", "edema")
    assert images.y.tolist() == given["test_labels"][:, 1].tolist()


def test_a_file_whose_name_ends_like_a_column_is_that_file(tmp_path):
    write(tmp_path / "x.npz")
    (tmp_path / "x.npz").rename(tmp_path / "x#1")
    assert data.load(f"npz:{tmp_path / 'x#1'}").classes == ("0", "1", "2")


def test_16_bit_images_give_their_high_byte(tmp_path):
    given = arrays(dtype=np.uint16)
    images = data.load(write(tmp_path / "x.npz", **given))
    assert np.array_equal(images.pixels[:, 0].numpy(), given["test_images"] // 256)


def test_arrays_that_are_not_compressed_are_mapped_from_the_disk(tmp_path):
    for compress in (False, True):
        write(tmp_path / "x.npz", compress=compress)
        with np.load(tmp_path / "x.npz") as found:
            images = _map(tmp_path / "x.npz", "test_images", found)
        assert isinstance(images, np.memmap) != compress
        assert np.array_equal(images, arrays()["test_images"])


def test_mapped_files_stay_as_they_are(tmp_path):
    path = write(tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()
    images = data.load(path)
    images.pixels.zero_()
    assert (tmp_path / "x.npz").read_bytes() == before


def test_the_fingerprint_is_that_of_the_same_pixels_in_memory(tmp_path):
    images = data.load(write(tmp_path / "x.npz", **arrays(shape=(4, 5, 3), n=3000)))
    pixels = torch.from_numpy(arrays(shape=(4, 5, 3), n=3000)["test_images"]).permute(0, 3, 1, 2)
    held = data.ImageSet("other", pixels.contiguous(), images.y.clone(), images.classes)
    assert images.fingerprint() == held.fingerprint()


def test_arrays_are_resized_and_coloured_on_request(tmp_path):
    by = Preparation(size=9, channels="rgb")
    images = data.load(write(tmp_path / "x.npz"), preparation=by)
    assert images.shape == (3, 9, 9)
    with pytest.raises(InputError, match="has 28 channels"):
        data.load(write(tmp_path / "y.npz", **arrays(shape=(28, 28, 28))), preparation=by)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "no test_images, but the splits train, val"),
        ({"test_labels": None}, "no test_labels, but"),
        ({f"{s}_images": None for s in SPLITS}, "train_labels.* test_images and test_labels are needed"),
        (
            {"test_labels": np.array([{"a": 1}] * 12, dtype=object)},
            "test_labels .*pickled objects are refused",
        ),
        (
            {"test_images": np.array([{"a": 1}] * 12, dtype=object)},
            "test_images .*pickled objects are refused",
        ),
        ({"test_labels": np.full((12, 1), -1)}, r"must lie in .* got \[-1, 2\]"),
        (
            {"classes": np.array(["a", "b"])},
            r"must lie in \[0, 1\], one for each name in classes, got \[0, 2\]",
        ),
        ({"test_labels": np.full((12, 1), 255)}, "no images of 252 classes"),
        ({"test_labels": np.zeros((12, 1))}, "whole number"),
        ({"test_labels": np.zeros((7, 1), np.uint8)}, "12 test_images and 7 test_labels"),
        ({f"{s}_labels": np.zeros((12, 1), np.uint8) for s in SPLITS}, "one class only"),
        ({"test_images": np.zeros((12, 4, 4))}, r"float64 values.*astype\('uint8'\)"),
        ({"test_images": np.zeros((12, 4), np.uint8)}, r"shape \(12, 4\)"),
        ({"test_images": np.zeros((0, 4, 4), np.uint8), "test_labels": np.zeros((0, 1), int)}, "is empty"),
        ({f"{s}_labels": np.zeros((12, 5), np.uint8) for s in SPLITS}, "5 labels an image.*FILE#0"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(changes, message, tmp_path):
    path = write(tmp_path / "schöne daten.npz", **changes)
    with pytest.raises(InputError, match=message) as refusal:
        data.load(path)
    assert "schöne daten.npz" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("column", "classes", "message"),
    [("#3", 2, "no label column 3: take one of 0 to 2"), ("#0", 3, "must hold 0 and 1 only")],
)
def test_columns_that_are_no_task_are_refused(column, classes, message, tmp_path):
    path = write(tmp_path / "x.npz", **arrays(width=3, classes=classes))
    with pytest.raises(InputError, match=message):
        data.load(path + column)


def test_a_column_of_single_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="no label column 0: its images have one label each"):
        data.load(write(tmp_path / "x.npz") + "#0")


class Trap:
    """Tells when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return _spring, ()


def _spring():
    Trap.sprung = True


@pytest.mark.parametrize("content", ["pickle", "text", "nothing", "one array", "half"])
def test_files_that_are_no_npz_are_refused_and_nothing_is_unpickled(content, tmp_path):
    one = io.BytesIO()
    np.save(one, np.zeros(3))
    write(tmp_path / "whole.npz")
    (tmp_path / "x.npz").write_bytes(
        {
            "pickle": pickle.dumps(Trap()),
            "text": b"hello",
            "nothing": b"",
            "one array": one.getvalue(),
            "half": (tmp_path / "whole.npz").read_bytes()[:700],
        }[content]
    )
    with pytest.raises(InputError, match=r"x\.npz") as refusal:
        data.load(f"npz:{tmp_path / 'x.npz'}")
    assert "\n" not in str(refusal.value) and not Trap.sprung


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    path = write(tmp_path / "x.npz", test_labels=np.array([Trap()] * 12, dtype=object))
    with pytest.raises(InputError):
        data.load(path)
    assert not Trap.sprung


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        data.load(f"npz:{tmp_path / 'x.npz'}")
