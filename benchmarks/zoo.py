"""Real nets with real test images, by name: what the benchmarks measure on.

The folder that POISE_TEST_DATA names holds them: mnist/, weights/ and the .npz files, as its own README
says. Nets that are not on file (digits, 3 against 8) are trained here in seconds from a seed. Every model
takes images in [0, 1], its normalisation inside, and comes in evaluation mode.

    model, x, y = load("cifar10-resnet20", images=150, start=0)
"""

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poise import data, defenses, models
from poise.progress import silent
from poise.shapes import Images, Labels
from poise.training import TrainJob, train

GREY, SMALL = (1, 28, 28), (3, 32, 32)


class Case(NamedTuple):
    """A model with images that it never saw in training, and their true labels."""

    model: nn.Module
    x: Images
    y: Labels


def load(name: str, *, images: int = 200, start: int = 0) -> Case:
    """The net of that name with its test images `start` to `start + images`."""
    net, source = ZOO[name]
    x, y = source(start, start + images)
    return Case(net().eval().requires_grad_(False), x, y)


def folder() -> Path:
    """The data folder."""
    path = os.environ.get("POISE_TEST_DATA", "")
    if not Path(path, "weights").is_dir():
        raise SystemExit(f"set POISE_TEST_DATA to the folder of weights/ and mnist/; now it is {path!r}")
    return Path(path)


# Measuring


class Counting(nn.Module):
    """A net that counts its forward and backward passes."""

    def __init__(self, net):
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def count_backward(self, grad):
        self.backwards += 1

    def forward(self, x):
        self.forwards += 1
        if x.requires_grad:
            x.register_hook(self.count_backward)
        return self.net(x)


def interval(difference, draws=2000):
    """The paired bootstrap's 95 % interval of a mean."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    return [float(q) for q in difference[chosen].mean(dim=1).quantile(torch.tensor([0.025, 0.975]))]


# Images


def mnist(split: str = "t10k") -> tuple[np.ndarray, np.ndarray]:
    """All images (n, 28, 28) and labels of MNIST's "train" or "t10k" files, uint8."""
    x, y = (
        np.frombuffer(gzip.decompress((folder() / "mnist" / f"{split}-{what}-ubyte.gz").read_bytes()), "u1")
        for what in ("images-idx3", "labels-idx1")
    )
    return x[16:].reshape(-1, 28, 28), y[8:]


def tensors(x: np.ndarray, y: np.ndarray, scale: int = 255) -> tuple[Images, Labels]:
    """(n, h, w) or (n, h, w, c) integers as (n, c, h, w) floats in [0, 1], with int64 labels."""
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(x.astype(np.float32)) / scale
    return pixels.contiguous(), torch.from_numpy(y.astype(np.int64))


def mnist_test(start: int, end: int) -> tuple[Images, Labels]:
    """MNIST test images."""
    x, y = mnist()
    return tensors(x[start:end], y[start:end])


def mnist_pair(a: int, b: int, split: str = "t10k") -> tuple[np.ndarray, np.ndarray]:
    """The images of two digits; label 1 is digit b."""
    x, y = mnist(split)
    chosen = (y == a) | (y == b)
    return x[chosen], y[chosen] == b


def mnist_pair_test(a: int, b: int) -> Callable[[int, int], tuple[Images, Labels]]:
    """Test images of two digits."""

    def source(start: int, end: int) -> tuple[Images, Labels]:
        x, y = mnist_pair(a, b)
        return tensors(x[start:end], y[start:end])

    return source


def cifar10_test(start: int, end: int) -> tuple[Images, Labels]:
    """CIFAR-10 test images with their original pixels (1,017 of them)."""
    with np.load(folder() / "cifar10_exact_subset.npz") as z:
        return tensors(z["x_test"][start:end], z["y_test"][start:end])


def digits_test(start: int, end: int) -> tuple[Images, Labels]:
    """scikit-learn's digits, poise's test split (360 of them)."""
    held = data.digits("test")
    return held.pixels[start:end].float() / held.scale, held.y[start:end]


def imagenet_sample(start: int, end: int) -> tuple[Images, Labels]:
    """224×224 centre crops, each of another class, spread over the 800 classes on file."""
    from PIL import Image

    with np.load(folder() / "imagenet_sample_jpeg.npz") as z:
        body, offset, label = z["body"].tobytes(), z["offset"], z["label"]
    order = np.random.default_rng(0).permutation(len(label))[start:end]
    crops = []
    for i in order:
        image = Image.open(io.BytesIO(body[offset[i] : offset[i + 1]])).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        crops.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    return tensors(np.stack(crops), label[order])


# Nets


def filed(name: str, file: str, classes: int, shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    """A model of poise with the weights of that name."""
    return lambda: models.load(
        name, classes=classes, shape=shape, weights=folder() / "weights" / f"{file}.pt"
    )


class Scaled(nn.Module):
    """A net with its logits multiplied: the same answers with another confidence."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Images) -> Tensor:
        return self.scale * self.net(x)


def trained(net: nn.Module, x: Images, y: Labels, *, seed: int, epochs: int, lr: float = 0.05) -> nn.Module:
    """The net after SGD with Nesterov momentum 0.9, the learning rate falling to 0 along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(x) // 128)
    optimizer = torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net


def pictures(file: str, split: int, *, classes: int) -> tuple[Images, Labels]:
    """Grey pictures of a .npz of JPEGs, 64×64, of its first so many classes, in a random order."""
    from PIL import Image

    with np.load(folder() / f"{file}_jpeg.npz") as z:
        body, offset, label = z["body"].tobytes(), z["offset"], z["label"]
        chosen = np.flatnonzero((z["split"] == split) & (label < classes))
    chosen = np.random.default_rng(0).permutation(chosen)
    small = [
        np.asarray(Image.open(io.BytesIO(body[offset[i] : offset[i + 1]])).convert("L").resize((64, 64)))
        for i in chosen
    ]
    return tensors(np.stack(small), label[chosen])


def pictures_test(file: str, *, classes: int) -> Callable[[int, int], tuple[Images, Labels]]:
    """Test pictures of that file."""

    def source(start: int, end: int) -> tuple[Images, Labels]:
        x, y = pictures(file, 1, classes=classes)
        return x[start:end], y[start:end]

    return source


def pictures_net(file: str, *, classes: int) -> Callable[[], nn.Module]:
    """A small CNN trained on the training pictures of that file, 15 epochs."""

    def net() -> nn.Module:
        x, y = pictures(file, 0, classes=classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = models.load("small-cnn", classes=classes, shape=(1, 64, 64))
        return trained(fresh, x, y, seed=0, epochs=15, lr=0.02)

    return net


def digits_vit() -> nn.Module:
    """A vision transformer of four blocks of width 64 on digits, 2×2 patches, 40 epochs."""
    from timm.models.vision_transformer import VisionTransformer

    held = data.digits("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4
        )
    return trained(fresh, held.pixels.float() / held.scale, held.y, seed=0, epochs=40, lr=0.05)


def digits_uat(defense: str) -> Callable[[], nn.Module]:
    """LeNet trained on digits by a defense at ε = .15, 20 epochs."""

    def net() -> nn.Module:
        with tempfile.TemporaryDirectory() as out:
            held = data.digits("train")
            job = TrainJob(data="digits", model="lenet", defense=defense, epochs=20)
            return train(job, held, defenses.build(defense, eps=0.15), Path(out) / "run", progress=silent)

    return net


def fresh_lenet(seed: int, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """LeNet with random weights that the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.lenet(classes=classes, shape=shape)


def digits_lenet(seed: int) -> Callable[[], nn.Module]:
    """LeNet trained on digits, 40 epochs."""

    def net() -> nn.Module:
        held = data.digits("train")
        model = fresh_lenet(seed, 10, held.shape)
        return trained(model, held.pixels.float() / held.scale, held.y, seed=seed, epochs=40)

    return net


def pair_lenet(a: int, b: int, seed: int) -> Callable[[], nn.Module]:
    """LeNet trained on two digits of MNIST, 2 epochs."""

    def net() -> nn.Module:
        x, y = tensors(*mnist_pair(a, b, "train"))
        return trained(fresh_lenet(seed, 2, (1, 28, 28)), x, y, seed=seed, epochs=2)

    return net


ZOO: Mapping[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Images, Labels]]]] = {
    "mnist-standard": (filed("lenet5-advertorch", "mnist_lenet5_standard", 10, GREY), mnist_test),
    "mnist-adversarial": (filed("lenet5-advertorch", "mnist_lenet5_adversarial", 10, GREY), mnist_test),
    "mnist-3-8": (pair_lenet(3, 8, seed=0), mnist_pair_test(3, 8)),
    "mnist-4-9": (pair_lenet(4, 9, seed=1), mnist_pair_test(4, 9)),
    "digits": (digits_lenet(0), digits_test),
    "digits-uat-smooth": (digits_uat("uat-smooth"), digits_test),
    "digits-uat-gap": (digits_uat("uat-gap"), digits_test),
    "digits-vit": (digits_vit, digits_test),
    "chest-3": (pictures_net("chest_xray3", classes=3), pictures_test("chest_xray3", classes=3)),
    "digits-b": (digits_lenet(1), digits_test),
    "cifar10-resnet20": (filed("cifar-resnet20", "cifar10_resnet20", 10, SMALL), cifar10_test),
    "cifar10-resnet56": (filed("cifar-resnet56", "cifar10_resnet56", 10, SMALL), cifar10_test),
    "cifar10-certified-linf": (
        filed("certified-cnn", "cifar10_smallcnn_certified_linf8", 10, SMALL),
        cifar10_test,
    ),
    "cifar10-certified-l2": (
        filed("certified-cnn", "cifar10_smallcnn_certified_l2", 10, SMALL),
        cifar10_test,
    ),
    "imagenet-lite0": (
        filed("timm/tf_efficientnet_lite0", "imagenet_efficientnet_lite0", 1000, (3, 224, 224)),
        imagenet_sample,
    ),
}
