"""Weights in files: wrappers' prefixes, whole or not at all, new heads; published nets' accuracy."""

import gzip

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poise import InputError, models
from poise.models.weights import unwrap


def small(classes=4):
    """A net of two layers; the last is its head."""
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def save(state, file):
    torch.save(state, file)
    return file


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# prefixes


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod.", "model.model."]
)
def test_a_wrappers_prefix_on_all_keys_counts_for_nothing(prefix, tmp_path):
    source, net = small(), small()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    models.load_weights(net, save(state, tmp_path / "w.pt"))
    assert same(net.state_dict(), source.state_dict())


def test_the_wrapper_may_be_the_models(tmp_path):
    source = small()
    wrapped = models.Classifier(nn.Identity(), nn.DataParallel(small()))
    models.load_weights(wrapped, save(source.state_dict(), tmp_path / "w.pt"))
    assert same(wrapped.net.module.state_dict(), source.state_dict())


def test_a_prefix_on_some_keys_alone_is_part_of_the_names(tmp_path):
    assert list(unwrap(["module.a", "b"])) == ["module.a", "b"]
    source, net = small(), small()
    state = dict(source.state_dict())
    state["module.3.bias"] = state.pop("3.bias")
    with pytest.raises(InputError, match=r"missing: 3\.bias; unexpected: module\.3\.bias$"):
        models.load_weights(net, save(state, tmp_path / "w.pt"))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_with_a_state_dict_inside_is_read(key, tmp_path):
    source, net = small(), small()
    models.load_weights(net, save({"epoch": 3, key: source.state_dict(), "best": 0.5}, tmp_path / "w.pt"))
    assert same(net.state_dict(), source.state_dict())


# whole or not at all


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    state = dict(small().state_dict())
    del state["1.weight"], state["2.running_mean"]
    state |= {"extra": torch.zeros(1), "other.weight": torch.zeros(2), "3.weight": torch.zeros(7, 5)}
    state["3.bias"] = torch.zeros(7)
    net = small()
    before = snapshot(net)
    with pytest.raises(InputError) as refusal:
        models.load_weights(net, save(state, tmp_path / "w.pt"))
    assert str(refusal.value) == (
        f"the weights in {str(tmp_path / 'w.pt')!r} do not fit the model: "
        "missing: 1.weight, 2.running_mean; unexpected: extra, other.weight; "
        "of another shape: 3.weight (7×5 there, 4×5 in the model), 3.bias (7 there, 4 in the model)"
    )
    assert same(net.state_dict(), before)


def test_a_file_may_go_without_batchnorms_counter(tmp_path):
    source, net = small(), small()
    state = {name: v for name, v in source.state_dict().items() if not name.endswith("tracked")}
    models.load_weights(net, save(state, tmp_path / "w.pt"))
    assert same(net.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"weight": [1.0]}], ids=repr
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(InputError, match="no state dict"):
        models.load_weights(small(), save(content, tmp_path / "w.pt"))


def test_the_fingerprint_tells_weights_and_their_names_apart():
    net = small()
    first = models.fingerprint(net)
    assert models.fingerprint(net.bfloat16()) != first
    other = small()
    other.load_state_dict(net.float().state_dict())
    assert models.fingerprint(net) == models.fingerprint(other) and len(first) == 16
    renamed = nn.Sequential(*other[:3], nn.Identity(), other[3])
    assert models.fingerprint(renamed) != models.fingerprint(other)


# heads


def test_a_new_head_keeps_fresh_weights_and_the_rest_comes_from_the_file(tmp_path):
    source, net = small(classes=7), small()
    before = snapshot(net)
    file = save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"of another shape: 3\.weight"):
        models.load_weights(net, file)
    models.load_weights(net, file, new_head=True)
    for name, value in net.state_dict().items():
        assert torch.equal(value, (before if name.startswith("3.") else source.state_dict())[name])


def test_a_file_without_a_head_is_enough_for_a_new_one(tmp_path):
    source, net = small(), small()
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("3.")}
    file = save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"missing: 3\.weight, 3\.bias$"):
        models.load_weights(net, file)
    models.load_weights(net, file, new_head=True)
    assert torch.equal(net[1].weight, source[1].weight) and not torch.equal(net[3].weight, source[3].weight)


def test_a_head_that_fits_is_taken_and_only_the_head_may_differ(tmp_path):
    source, net = small(), small()
    models.load_weights(net, save(source.state_dict(), tmp_path / "w.pt"), new_head=True)
    assert same(net.state_dict(), source.state_dict())
    state = source.state_dict() | {"1.bias": torch.zeros(9)}
    with pytest.raises(InputError, match=r"shape: 1\.bias \(9 there, 5 in the model\)$"):
        models.load_weights(net, save(state, tmp_path / "w.pt"), new_head=True)


def test_the_head_is_the_last_linear_layer_or_else_the_last_convolution():
    assert models.head(small())[0] == "3"
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))
    assert models.head(mixed)[0] == "0"
    assert models.head(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1), nn.Flatten()))[0] == "1"
    with pytest.raises(InputError, match="no linear layer and no convolution"):
        models.head(nn.Sequential(nn.ReLU()))


# published nets


def cifar10(folder):
    with np.load(folder / "cifar10_exact_subset.npz") as z:
        x, y = z["x_test"].transpose(0, 3, 1, 2), z["y_test"]
    return torch.from_numpy(x.astype(np.float32)) / 255, torch.from_numpy(y.astype(np.int64))


def mnist(folder, n):
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / "mnist" / f"t10k-{what}-ubyte.gz").read_bytes()), "u1")
        for what in ("images-idx3", "labels-idx1")
    )
    x = torch.from_numpy(pixels[16:].reshape(-1, 1, 28, 28)[:n].astype(np.float32)) / 255
    return x, torch.from_numpy(labels[8:][:n].astype(np.int64))


@torch.no_grad()
def right(model, x, y):
    """How many answers are right."""
    return sum(
        int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(128), y.split(128), strict=True)
    )


def by_hand(state, x, blocks):
    """A CIFAR ResNet's logits straight from its tensors: each block by formula, no module."""
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def layer(x, at, stride=1):
        x = F.conv2d(x, state[at.replace("bn", "conv") + ".weight"], stride=stride, padding=1)
        a = state[f"{at}.weight"] / (state[f"{at}.running_var"] + 1e-5).sqrt()
        b = state[f"{at}.bias"] - a * state[f"{at}.running_mean"]
        return x * a.reshape(1, -1, 1, 1) + b.reshape(1, -1, 1, 1)

    x = layer((x - mean) / std, "bn1").clamp_min(0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            at = f"layer{stage}.{block}"
            inner = layer(layer(x, f"{at}.bn1", stride).clamp_min(0), f"{at}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *inner.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (x + inner).clamp_min(0)
    return x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", [20, 56])  # their accuracy is tested in test_published_accuracy.py
def test_cifar_resnets_have_the_logits_of_their_weights(depth, shared_data):
    x, _ = cifar10(shared_data)
    file = shared_data / "weights" / f"cifar10_resnet{depth}.pt"
    model = models.load(f"cifar-resnet{depth}", shape=(3, 32, 32), weights=file)
    with torch.no_grad():
        expected = by_hand(models.read_weights(file), x[:8], (depth - 2) // 6)
        torch.testing.assert_close(model(x[:8]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "count"), [("linf8", 317), ("l2", 563)])
def test_certified_cnns_have_their_accuracy(kind, count, shared_data):
    x, y = cifar10(shared_data)  # published: 31.2 % and 55.4 % of 1,017
    file = shared_data / "weights" / f"cifar10_smallcnn_certified_{kind}.pt"
    model = models.load("certified-cnn", shape=(3, 32, 32), weights=file)
    assert right(model, x, y) == count
    state = models.read_weights(file)
    z = (x[:8] - torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)) / 0.225
    for at in ("0", "2"):
        z = F.conv2d(z, state[f"{at}.weight"], state[f"{at}.bias"], stride=2, padding=1).clamp_min(0)
    z = (z.flatten(1) @ state["5.weight"].T + state["5.bias"]).clamp_min(0)
    torch.testing.assert_close(
        model(x[:8]), z @ state["7.weight"].T + state["7.bias"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("kind", "count"), [("standard", 984), ("adversarial", 982)])
def test_advertorchs_lenets_have_their_accuracy(kind, count, shared_data):
    """Published: 98.9 % and 98.6 % of all 10,000 test images; here the first 1,000."""
    x, y = mnist(shared_data, 1000)
    file = shared_data / "weights" / f"mnist_lenet5_{kind}.pt"
    assert right(models.load("lenet5-advertorch", weights=file), x, y) == count
    state = models.read_weights(file)

    def plain(z):
        for at in ("conv1", "conv2"):
            z = F.max_pool2d(
                F.conv2d(z, state[f"{at}.weight"], state[f"{at}.bias"], padding=1), 2
            ).clamp_min(0)
        z = (z.flatten(1) @ state["linear1.weight"].T + state["linear1.bias"]).clamp_min(0)
        return z @ state["linear2.weight"].T + state["linear2.bias"]

    assert right(plain, x, y) == count


def test_a_turned_bit_in_a_zip_of_weights_is_told_by_its_checksum(tmp_path):
    net, file = nn.Linear(40, 3), tmp_path / "net.pt"
    torch.save(net.state_dict(), file)
    content = bytearray(file.read_bytes())
    at = content.index(net.weight.detach().numpy().tobytes())
    content[at + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"are damaged: the checksum of net/data/\d does not fit"):
        models.load_weights(net, file)


def test_a_zip_of_weights_without_checksums_is_read(tmp_path):
    net, other = nn.Linear(4, 3), nn.Linear(4, 3)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net.state_dict(), tmp_path / "net.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    models.load_weights(other, tmp_path / "net.pt")
    assert torch.equal(other.weight, net.weight)


@pytest.mark.parametrize("name", ["2.running_var", "2.running_mean", "1.weight"])
def test_infinite_weights_and_statistics_are_refused(tmp_path, name):
    net = small()
    state = snapshot(net)
    state[name].flatten()[0] = torch.inf
    with pytest.raises(InputError, match=rf"1 of the \d+ numbers of {name} are NaN or infinite"):
        models.load_weights(net, save(state, tmp_path / "net.pt"))
