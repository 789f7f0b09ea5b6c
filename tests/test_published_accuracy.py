"""Published weights on published images: loaders, normalisation and the labels' order are then right."""

import numpy as np
import pytest
import torch

from poise import data, models


def accuracy(model, images):
    with torch.no_grad():
        right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in images)
    return right / len(images)


@pytest.mark.parametrize(("depth", "published"), [(20, 0.916), (56, 0.927)])
def test_cifar_resnets_on_original_pixels(depth, published, shared_data, tmp_path):
    arrays = np.load(shared_data / "cifar10_exact_subset.npz")
    np.savez(
        tmp_path / "cifar.npz",
        **{f"{split}_images": arrays[f"x_{split}"] for split in ("train", "test")},
        **{f"{split}_labels": arrays[f"y_{split}"].astype(np.int64) for split in ("train", "test")},
    )
    images = data.load(f"npz:{tmp_path / 'cifar.npz'}", split="test")
    weights = shared_data / "weights" / f"cifar10_resnet{depth}.pt"
    model = models.load(f"cifar-resnet{depth}", weights=weights, shape=images.shape)
    assert len(images) == 1017 and accuracy(model, images) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("kind", "published"), [("standard", 0.989), ("adversarial", 0.986)])
def test_lenets_on_mnist(kind, published, shared_data, mnist_root):
    images = data.load("mnist", split="test", root=mnist_root)
    weights = shared_data / "weights" / f"mnist_lenet5_{kind}.pt"
    model = models.load("lenet5-advertorch", weights=weights)
    assert len(images) == 10_000 and accuracy(model, images) == pytest.approx(published, abs=5e-4)


def test_efficientnet_lite0_on_imagenet(shared_data, tmp_path):
    """87.8 % on all 800 images; of 80 of them, fewer than 61 right has a chance of .0012 (binomial)."""
    arrays = np.load(shared_data / "imagenet_sample_jpeg.npz")
    body, offset = arrays["body"].tobytes(), arrays["offset"]
    for wnid in arrays["wnid"]:
        (tmp_path / "imagenet" / "val" / str(wnid)).mkdir(parents=True)
    for i in range(0, len(arrays["label"]), 10):
        wnid = str(arrays["wnid"][arrays["label"][i]])
        (tmp_path / "imagenet" / "val" / wnid / "a.jpg").write_bytes(body[offset[i] : offset[i + 1]])
    images = data.load(
        "imagenet", root=tmp_path, preparation=data.Preparation(allow_empty=True), batch_size=40
    )
    weights = shared_data / "weights" / "imagenet_efficientnet_lite0.pt"
    model = models.load("timm/tf_efficientnet_lite0", weights=weights, classes=1000, shape=images.shape)
    assert len(images) == 80 and accuracy(model, images) >= 61 / 80
