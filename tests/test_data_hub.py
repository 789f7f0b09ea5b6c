"""Hugging Face data sets, through a stand-in for the package `datasets` with its names and habits."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from poise import InputError, data
from poise.data import Preparation


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Rows:
    """A `datasets.Dataset` of encoded images; decoding them all as it would must not happen."""

    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __len__(self):
        return len(self.columns["label"])

    def cast_column(self, name, feature):
        return Rows(self.features | {name: feature}, self.columns)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert not self.features["picture"].decode, "decoded by the package"
        return {name: column[key] for name, column in self.columns.items()}


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in in the package's place; `calls` records what was asked of it."""
    (tmp_path / "4.png").write_bytes(encoded(PIXELS[4]))
    pictures = [{"bytes": encoded(x), "path": "x.png"} for x in PIXELS[:4]]
    pictures.append({"bytes": None, "path": str(tmp_path / "4.png")})
    features = {"id": Value(), "picture": ImageFeature(), "label": ClassLabel(["cat", "dog", "owl"])}
    rows = Rows(features, {"id": list(range(5)), "picture": pictures, "label": [0, 1, 2, 1, 0]})
    calls, parts = [], {"train": rows, "validation": rows}

    def load_dataset(path, config, download_config):
        calls.append((path, config, download_config.local_files_only))
        if path != "someone/pets":
            raise FileNotFoundError("Dataset doesn't exist on the Hub\nand a traceback")
        return parts

    module = ModuleType("datasets")
    module.load_dataset, module.Image, module.ClassLabel = load_dataset, ImageFeature, ClassLabel
    module.exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    module.DownloadConfig = lambda local_files_only: SimpleNamespace(local_files_only=local_files_only)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return SimpleNamespace(calls=calls, rows=rows, parts=parts)


def test_a_data_set_of_the_hub_is_read(hub):
    images = data.load("hf:someone/pets", split="train")
    assert images.classes == ("cat", "dog", "owl") and images.y.tolist() == [0, 1, 2, 1, 0]
    assert images.name == "pets" and images.shape == (3, 6, 6)
    assert np.array_equal(images.pixels.read(torch.arange(5)).permute(0, 2, 3, 1).numpy(), PIXELS)
    assert len(data.load("hf:someone/pets", split="val")) == 5
    assert hub.calls[0] == ("someone/pets", None, True)  # nothing is fetched unasked


def test_a_configuration_and_a_download_are_passed_on(hub):
    data.load("hf:someone/pets#large", split="train", download=True)
    assert hub.calls == [("someone/pets", "large", False)]


def test_it_is_prepared_drawn_and_hashed_like_every_other(hub):
    by = Preparation(size=4, channels="grey", drop=("dog",))
    images = data.load("hf:someone/pets", split="train", preparation=by)
    assert images.shape == (1, 4, 4) and images.classes == ("cat", "owl") and images.y.tolist() == [0, 1, 0]
    before = images.fingerprint()
    hub.rows.columns["picture"][2]["bytes"] = encoded(255 - PIXELS[2])
    assert images.fingerprint() != before


def test_a_damaged_row_is_named_and_left_out_on_request(hub):
    hub.rows.columns["picture"][1]["bytes"] = encoded(PIXELS[1])[:60]
    with pytest.raises(InputError, match=r"row 1 of hf:someone/pets cannot be read"):
        list(data.load("hf:someone/pets", split="train"))
    with pytest.warns(UserWarning, match="left out 1 of 5 .* row 1 of hf:someone/pets"):
        images = data.load("hf:someone/pets", split="train", preparation=Preparation(skip_damaged=True))
    assert images.y.tolist() == [0, 2, 1, 0]


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets.*pip install 'poise\[hf\]'"):
        data.load("hf:someone/pets")


def test_a_data_set_that_cannot_be_had_is_refused_in_one_line(hub):
    with pytest.raises(InputError, match=r"'no/such'.*doesn't exist.*poise download hf:no/such") as refusal:
        data.load("hf:no/such")
    assert "\n" not in str(refusal.value)


def test_a_split_that_it_has_not_is_refused_with_those_that_it_has(hub):
    with pytest.raises(InputError, match="has the splits train, validation and no 'test'"):
        data.load("hf:someone/pets", split="test")


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(hub, label):
    hub.rows.columns["label"][0] = label
    with pytest.raises(InputError, match=r"must lie in \[0, 2\]"):
        data.load("hf:someone/pets", split="train")


@pytest.mark.parametrize("column", ["picture", "label"])
def test_a_data_set_of_something_else_is_refused_with_its_columns(hub, column):
    hub.rows.features[column] = Value()
    with pytest.raises(
        InputError, match=rf"one column of images and one of class labels.*{column} \(Value\)"
    ):
        data.load("hf:someone/pets", split="train")
