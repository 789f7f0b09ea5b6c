"""Published weights on published images: loaders, normalisation and the labels' order are then right."""

import numpy as np
import pytest
import torch

from poise import data, models


def accuracy(model, images):
    with torch.no_grad():
        right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in images)
    return right / len(images)


@pytest.fixture(scope="module")
def cifar(shared_data, tmp_path_factory):
    file = tmp_path_factory.mktemp("cifar") / "cifar.npz"
    arrays = np.load(shared_data / "cifar10_exact_subset.npz")
    np.savez(
        file,
        **{f"{split}_images": arrays[f"x_{split}"] for split in ("train", "test")},
        **{f"{split}_labels": arrays[f"y_{split}"].astype(np.int64) for split in ("train", "test")},
    )
    return data.load(f"npz:{file}", split="test")


@pytest.fixture(scope="module")
def mnist(mnist_root):
    return data.load("mnist", split="test", root=mnist_root)


@pytest.mark.parametrize(("depth", "published"), [(20, 0.916), (56, 0.927)])
def test_cifar_resnets_on_original_pixels(depth, published, cifar, shared_data):
    weights = shared_data / "weights" / f"cifar10_resnet{depth}.pt"
    model = models.load(f"cifar-resnet{depth}", weights=weights, shape=cifar.shape)
    assert len(cifar) == 1017 and accuracy(model, cifar) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("kind", "published"), [("standard", 0.989), ("adversarial", 0.986)])
def test_lenets_on_mnist(kind, published, mnist, shared_data):
    weights = shared_data / "weights" / f"mnist_lenet5_{kind}.pt"
    model = models.load("lenet5-advertorch", weights=weights)
    assert len(mnist) == 10_000 and accuracy(model, mnist) == pytest.approx(published, abs=5e-4)


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
