"""The paper's six architectures: built, run forward and backward, attacked, saved and loaded."""

import pytest
import torch

from poise import InputError, attacks, models, store

SIX = {  # name -> (image shape, parameters at seven classes)
    "lenet": ((1, 28, 28), 61_706 - 3 * 85),
    "resnet18": ((3, 16, 16), 11_173_962 - 3 * 513),
    "resnet50": ((3, 16, 16), 23_520_842 - 3 * 2049),
    "wide-resnet50-2": ((3, 16, 16), 68_883_240 - 993 * 2049 - 64 * 3 * (7 * 7 - 3 * 3)),
    "torchvision/efficientnet_b0": ((3, 64, 64), 5_288_548 - 993 * 1281),
    "torchvision/resnet50": ((3, 64, 64), 25_557_032 - 993 * 2049),
    "torchvision/vit_b_16": ((3, 32, 32), 86_567_656 - 993 * 769 - (14 * 14 - 2 * 2) * 768),
}
LIGHT = (
    "lenet",
    "resnet18",
    "torchvision/efficientnet_b0",
)  # the others' files are of a third of a gigabyte


@pytest.fixture(scope="module", params=SIX)
def built(request):
    """The name, the net with the weights that seed 0 draws, and two images of its shape."""
    shape, _ = SIX[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.load(request.param, classes=7, shape=shape)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    head = models.head(net)[1]
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(2))  # a fresh ViT's is all zeros
        head.weight /= (net(x) - head.bias).abs().max()  # logits near 1, and an answer to keep
        head.bias[3] += 3
    return request.param, net, x


def test_it_has_the_published_number_of_parameters(built):
    name, net, _ = built
    assert sum(p.numel() for p in net.parameters()) == SIX[name][1]


def test_it_runs_forward_and_backward(built):
    _, net, x = built
    net.zero_grad()
    x = x.clone().requires_grad_()
    logits = net(x)
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.logsumexp(dim=1).sum().backward()
    assert (x.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.zero_grad()


def test_it_is_attacked_for_two_steps(built):
    _, net, x = built
    eps = 0.5 / 255
    x_adv = attacks.confsmooth(eps=eps, step=eps / 2, steps=2)(net, x)
    assert (x_adv - x).abs().amax() <= eps + 1e-7
    assert (x_adv != x).flatten(1).any(dim=1).all()
    with torch.no_grad():
        clean, attacked = net(x), net(x_adv)
    assert torch.equal(clean.argmax(1), attacked.argmax(1))
    assert (attacked.softmax(1).amax(1) < clean.softmax(1).amax(1)).all()


@pytest.mark.parametrize("built", LIGHT, indirect=True)
def test_it_survives_a_file(built, tmp_path):
    _, net, x = built
    with torch.no_grad():
        before = net(x)
        store.write_tensors(tmp_path / "w.safetensors", net.state_dict())
        for value in net.state_dict().values():
            value.zero_()
        assert not torch.equal(net(x), before)
        models.load_weights(net, tmp_path / "w.safetensors")
        assert torch.equal(net(x), before)


def test_the_head_makes_the_logits(built):
    _, net, x = built
    name, head = models.head(net)
    seen = []
    handle = head.register_forward_hook(lambda *call: seen.append(call[2]))
    logits = net(x)
    handle.remove()
    assert torch.equal(seen[-1], logits)
    assert net.get_submodule(name) is head and head.out_features == 7


def test_small_images_keep_their_size_up_to_the_first_stage():
    net = models.load("resnet18", shape=(3, 32, 32))
    sizes = []
    net.layer1.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape)))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [(1, 64, 32, 32)]


def test_imagenet_nets_normalise_as_their_weights_want(built):
    name, net, x = built
    if not name.startswith("torchvision/"):
        assert not any(isinstance(layer, models.Normalize) for layer in net.modules())
        return
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert net.size == (224, 224)
    torch.testing.assert_close(net.normalize(x), (x - mean) / std)
    assert torch.equal(net(x), net.net(net.normalize(x)))


def test_a_vision_transformer_is_built_for_the_images_size_or_refused():
    with pytest.raises(InputError, match=r"vit_b_16 cannot be built for images of \(3, 30, 30\).*patch"):
        models.load("torchvision/vit_b_16", shape=(3, 30, 30))
    with pytest.raises(InputError, match="takes square images, got 32×64"):
        models.load("torchvision/vit_b_16", shape=(3, 32, 64))
