"""Trained nets and real test images on file, for tests against other packages."""

import gzip

import numpy as np
import torch
from torch import nn

from poise.models import Normalize


def weights(folder, name):
    """The tensors of a weights file."""
    return torch.load(folder / "weights" / f"{name}.pt", map_location="cpu", weights_only=True)


def mnist(folder, n):
    """LeNet-5 of MNIST, with n test images and their labels."""
    names = (
        "conv1",
        "relu1",
        "maxpool1",
        "conv2",
        "relu2",
        "maxpool2",
        "flatten",
        "linear1",
        "relu3",
        "linear2",
    )
    layers = (
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 200), nn.ReLU(), nn.Linear(200, 10)),
    )
    net = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        net.add_module(name, layer)
    net.load_state_dict(weights(folder, "mnist_lenet5_standard"))
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / "mnist" / f"t10k-{what}-ubyte.gz").read_bytes()), "u1")
        for what in ("images-idx3", "labels-idx1")
    )
    x = torch.from_numpy(pixels[16:].reshape(-1, 1, 28, 28)[:n].astype(np.float32)) / 255
    return net.eval(), x, torch.from_numpy(labels[8:][:n].astype(np.int64))


def cifar10(folder, n):
    """A small CIFAR-10 net (Wong et al. 2018), with n test images and their labels."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    net.load_state_dict(weights(folder, "cifar10_smallcnn_certified_linf8"))
    with np.load(folder / "cifar10_exact_subset.npz") as z:
        x, y = z["x_test"][:n].transpose(0, 3, 1, 2), z["y_test"][:n]
    model = nn.Sequential(Normalize((0.485, 0.456, 0.406), (0.225,) * 3), net).eval()
    return model, torch.from_numpy(x.astype(np.float32)) / 255, torch.from_numpy(y.astype(np.int64))


NETS = {"mnist": mnist, "cifar10": cifar10}
EPS = {"mnist": 0.2, "cifar10": 24 / 255}
