"""Names of data, of splits and of classes: what people write, and what file systems make of it."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from poise import InputError, data
from poise.data import Preparation

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def folders(top, *paths):
    """A folder at each of the paths with one image, whose grey tells which: 10, 20, ..."""
    for place, path in enumerate(paths, 1):
        (top / path).mkdir(parents=True)
        Image.new("L", (4, 4), 10 * place).save(top / path / "x.png")
    return top


def seen(images):
    return images.classes, [
        (int(x[0, 0, 0] * 255 + 0.5), int(y)) for x, y in zip(*next(iter(images)), strict=True)
    ]


def array(file):
    np.savez(file, test_images=np.zeros((2, 4, 4), np.uint8), test_labels=np.array([0, 1]))
    return file


def test_a_path_alone_is_the_data_at_it(tmp_path, monkeypatch):
    folders(tmp_path / "set", "a", "b")
    file = array(tmp_path / "set.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["set", "./set", "~/set", "folder:~/set", tmp_path / "set", f"{tmp_path}/set/"]
    for name in names:
        assert seen(data.load(name)) == (("a", "b"), [(10, 0), (20, 1)])
    for name in ["set.npz", "~/set.npz", "npz:~/set.npz", file]:
        assert data.load(name).y.tolist() == [0, 1]
    assert data.load("set").fingerprint() == data.load("folder:set").fingerprint()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", r"'\./nothing' is not there: name data as folder:PATH"),
        ("nothing.npz", "there is no file 'nothing.npz'"),
        ("notes.txt", "'notes.txt' is no folder and no .npz file"),
        ("folder:set.npz", "that is a file, npz:set.npz"),
        ("npz:set", "that is a folder, folder:set"),
        ("~nobody-of-this-name/set", "nobody's home folder"),
        ("imgnet", "did you mean imagenet"),
    ],
)
def test_a_path_at_which_there_is_no_data(name, message, tmp_path, monkeypatch):
    folders(tmp_path / "set", "a", "b")
    array(tmp_path / "set.npz")
    (tmp_path / "notes.txt").write_text("no data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        data.load(name)


def test_the_name_of_a_data_set_is_not_a_folder_beside(tmp_path, monkeypatch):
    folders(tmp_path / "digits", "a", "b")
    monkeypatch.chdir(tmp_path)
    assert data.load("digits").shape == (1, 8, 8) and len(data.load("./digits")) == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_called_train(split, tmp_path):
    top = folders(tmp_path, "bus", "train")
    assert seen(data.load(top, split=split)) == (("bus", "train"), [(10, 0), (20, 1)])
    inner = folders(tmp_path / "set", "train/bus", "train/train", "test/bus", "test/train")
    found = {"train": [(10, 0), (20, 1)], "test": [(30, 0), (40, 1)]}[split]
    assert seen(data.load(inner, split=split)) == (("bus", "train"), found)


def test_images_in_folders_of_splits_are_of_no_class(tmp_path):
    with pytest.raises(InputError, match="has no classes"):
        data.load(folders(tmp_path, "train", "test"))


def test_accents_kept_in_two_ways_are_one_class(tmp_path):
    top = folders(tmp_path, f"train/{NFC}", "train/tea", f"test/{NFD}", "test/tea")
    assert seen(data.load(top, split="train")) == ((NFC, "tea"), [(10, 0), (20, 1)])
    assert seen(data.load(top, split="test")) == ((NFC, "tea"), [(30, 0), (40, 1)])
    folders(tmp_path, f"train/{NFD}")
    with pytest.raises(InputError, match=f"two folders of the name '{NFC}'"):
        data.load(top)


def test_a_class_is_left_out_by_its_name_in_either_form(tmp_path):
    top = folders(tmp_path, NFD, "tea", "water")
    assert data.load(top, preparation=Preparation(drop=(NFD,))).classes == ("tea", "water")
    assert data.load(top, preparation=Preparation(drop=(NFC,))).classes == ("tea", "water")


@pytest.mark.parametrize("other", ["cat", "CAT", "Cat ", "big_Cat", "big-cat"])
def test_classes_of_two_splits_that_differ_in_spelling_alone(other, tmp_path):
    own = "big cat" if "big" in other else "Cat"
    top = folders(tmp_path, f"train/{own}", "train/dog", f"test/{other}", "test/dog")
    for split in ("train", "test"):
        with pytest.raises(InputError, match=r"differ in their spelling alone: give them one name"):
            data.load(top, split=split, preparation=Preparation(allow_empty=True))


def test_letters_of_both_cases_are_classes_where_a_split_has_both(tmp_path):
    top = folders(tmp_path, "train/A", "train/a", "test/A", "test/a")
    assert data.load(top).classes == ("A", "a")


def test_a_class_or_set_whose_name_is_no_text_is_refused_before_any_work(tmp_path):
    folders(tmp_path, "a\udcff", "b")
    with pytest.raises(InputError, match=r"not UTF-8, 'a\\udcff': rename it"):
        data.load(tmp_path)
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"the data set has a name that is not UTF-8"):
        data.ImageSet("a\udcff", pixels, torch.tensor([0, 1]), ("a", "b"))


def test_image_files_may_be_called_anything(tmp_path):
    folders(tmp_path, "a", "b")
    Image.new("L", (4, 4), 99).save(tmp_path / "a" / "\udcff.png")
    assert [grey for grey, _ in seen(data.load(tmp_path))[1]] == [10, 99, 20]
    assert len(data.load(tmp_path).fingerprint()) == 64
