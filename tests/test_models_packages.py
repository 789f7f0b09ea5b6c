"""timm's and Hugging Face's models: one network through each gives the same bits."""

import io
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model
from transformers import AutoImageProcessor

from poise import InputError, attacks, models, store

transformers.utils.logging.disable_progress_bar()
SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A test that reached for the network would fail, not wait."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)


def images(shape=SHAPE, n=3, seed=0):
    """8-bit pixels, and the same in [0, 1]."""
    pixels = torch.randint(
        0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return pixels, pixels.float() / 255


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


# one network, three ways


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """timm's test_resnet in a folder as timm publishes: tensors, and a config with the normalisation."""
    folder = tmp_path_factory.mktemp("published é")
    net = seeded(lambda: timm.create_model("test_resnet", num_classes=10))
    save_file(
        {name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors"
    )
    about = {key: net.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    config = {
        "architecture": "test_resnet",
        "num_classes": 10,
        "label_names": [f"class {i}" for i in range(10)],
        "pretrained_cfg": {**about, "num_classes": 10, "input_size": SHAPE},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, net


def test_timms_hugging_faces_and_our_wrapping_agree_bit_for_bit(published):
    folder, net = published
    _, x = images()
    expected = net((x - 0.5) / 0.5)
    file = folder / "model.safetensors"
    for name, weights in [("timm/test_resnet", file), (f"hf/{folder}", None), (f"hf/{folder}", file)]:
        model = models.load(name, classes=10, shape=SHAPE, weights=weights)
        assert torch.equal(model(x), expected), (name, weights)
    inside = timm.data.create_transform(**timm.data.resolve_data_config({"input_size": SHAPE}, model=net))
    mean, std = inside.transforms[-1].mean, inside.transforms[-1].std
    assert torch.equal(torch.as_tensor(mean), model.normalize.mean.flatten())
    assert torch.equal(torch.as_tensor(std), model.normalize.std.flatten())


def test_timms_resnet18_is_torchvisions_bit_for_bit(tmp_path):
    net = seeded(lambda: get_model("resnet18", num_classes=5))
    file = tmp_path / "w.pt"
    torch.save(net.state_dict(), file)
    _, x = images()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for source in ("torchvision", "timm"):
        model = models.load(f"{source}/resnet18", classes=5, shape=SHAPE, weights=file)
        assert torch.equal(model(x), net((x - mean) / std)), source


@pytest.mark.parametrize("source", ["timm", "hf"])
def test_a_models_own_file_gives_it_back(source, published, tmp_path):
    folder, _ = published
    name, weights = (
        ("timm/test_resnet", folder / "model.safetensors") if source == "timm" else (f"hf/{folder}", None)
    )
    model = models.load(name, classes=10, shape=SHAPE, weights=weights)
    with torch.no_grad():
        models.head(model)[1].weight.mul_(2)
    store.write_tensors(tmp_path / "w.safetensors", model.state_dict())
    again = models.load(name, classes=10, shape=SHAPE, weights=tmp_path / "w.safetensors")
    assert torch.equal(again(images()[1]), model(images()[1]))


@pytest.mark.parametrize("source", ["timm", "hf"])
def test_gradients_reach_the_pixels_and_an_attack_runs(source, published):
    folder, _ = published
    name, weights = (
        ("timm/test_resnet", folder / "model.safetensors") if source == "timm" else (f"hf/{folder}", None)
    )
    model = models.load(name, classes=10, shape=SHAPE, weights=weights)
    _, x = images()
    x_adv = attacks.pgd(eps=0.03, steps=2)(model, x)
    assert (x_adv != x).flatten(1).any(dim=1).all() and (x_adv - x).abs().max() <= 0.03 + 1e-6


# timm


def test_timms_own_head_is_replaced_only_on_request(published, tmp_path):
    folder, net = published
    file = folder / "model.safetensors"
    with pytest.raises(InputError, match=r"fc\.weight \(10×96 there, 3×96 in the model\)"):
        models.load("timm/test_resnet", classes=3, shape=SHAPE, weights=file)
    model = models.load("timm/test_resnet", classes=3, shape=SHAPE, weights=file, new_head=True)
    assert torch.equal(model.net.conv1[0].weight, net.conv1[0].weight) and model(images()[1]).shape == (
        3,
        3,
    )


def test_an_unknown_timm_model_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="unknown timm model 'resnt18': did you mean resnet18"):
        models.load("timm/resnt18", shape=SHAPE)


def test_a_net_of_one_size_refuses_another():
    with pytest.raises(InputError, match=r"patch16_224 fails .* \(3, 32, 32\): it was trained on 224×224"):
        models.load("timm/vit_tiny_patch16_224", shape=SHAPE)


def test_timms_weights_that_cannot_be_downloaded_are_one_message():
    with pytest.raises(InputError, match="timm/test_resnet cannot be had"):
        models.load("timm/test_resnet", classes=1000, shape=(3, 160, 160), weights="pretrained")


def test_efficientnet_lite0_knows_imagenet(shared_data):
    """Published: 87.8 % on the sample's 1,000 images; all 800 on file have 699 right, 87.4 %."""
    model = models.load(
        "timm/tf_efficientnet_lite0",
        classes=1000,
        shape=(3, 224, 224),
        weights=shared_data / "weights" / "imagenet_efficientnet_lite0.pt",
    )
    with np.load(shared_data / "imagenet_sample_jpeg.npz") as z:
        body, offset, label = z["body"].tobytes(), z["offset"], z["label"]
    crops = []
    for i in range(24):
        image = Image.open(io.BytesIO(body[offset[i] : offset[i + 1]])).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        crops.append(np.array(image.crop((left, top, left + 224, top + 224))))
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        right = int((model(x).argmax(1).numpy() == label[:24]).sum())
    assert right == 21 and model.size == (224, 224)


# Hugging Face

PROCESSORS = {  # class -> settings besides the size; they differ in factor, offset, order of colours
    "ViTImageProcessor": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.5, 1.0]},
    "ConvNextImageProcessor": {"crop_pct": 1.0},
    "EfficientNetImageProcessor": {"rescale_offset": False, "include_top": True},
    "EfficientNetImageProcessor ": {
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "include_top": False,
    },
    "MobileViTImageProcessor": {"do_flip_channel_order": True},
    "ViTImageProcessor ": {"do_normalize": False},
    "ViTImageProcessor  ": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
}


def tiny_vit(classes=4):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=classes,
    )
    return seeded(lambda: transformers.ViTForImageClassification(config))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_processors_normalisation_is_the_first_layer(kind, tmp_path):
    net = tiny_vit()
    net.save_pretrained(tmp_path)
    size = {"shortest_edge": 32} if "ConvNext" in kind else {"height": 32, "width": 32}
    options = {**PROCESSORS[kind], "size": size, "crop_size": {"height": 32, "width": 32}}
    processor = getattr(transformers, kind.strip())(**options)
    processor.save_pretrained(tmp_path)
    pixels, x = images()
    given = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)(
        [image.permute(1, 2, 0).numpy() for image in pixels],
        return_tensors="pt",
        do_resize=False,
        **({"do_center_crop": False} if processor.to_dict().get("do_center_crop") else {}),
    )
    model = models.load(f"hf/{tmp_path}", classes=4, shape=SHAPE)
    torch.testing.assert_close(model(x), net(given["pixel_values"]).logits, rtol=1e-4, atol=1e-5)
    assert model.size == (32, 32)


@pytest.fixture
def vit(tmp_path):
    folder = tmp_path / "vit"
    tiny_vit().save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_folder_without_weights_of_its_own_head_is_refused(vit):
    transformers.ViTModel(transformers.ViTConfig.from_pretrained(vit)).save_pretrained(vit)
    with pytest.raises(InputError, match=r"no trained classifier.*classifier\.weight"):
        models.load(f"hf/{vit}", classes=4, shape=SHAPE)


def test_other_classes_are_refused_or_get_a_new_head(vit):
    with pytest.raises(InputError, match="is for 4 classes, not for 9"):
        models.load(f"hf/{vit}", classes=9, shape=SHAPE)
    model = models.load(f"hf/{vit}", classes=9, shape=SHAPE, new_head=True)
    assert model(images()[1]).shape == (3, 9)
    old = tiny_vit().state_dict()
    for name, value in model.net.net.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(value, old[name])


def test_a_new_head_is_no_excuse_for_a_backbone_that_lacks_weights(vit):
    state = models.read_weights(vit / "model.safetensors")
    del state["vit.layernorm.bias"], state["classifier.bias"]
    save_file(state, vit / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for vit\.layernorm\.bias$"):
        models.load(f"hf/{vit}", classes=9, shape=SHAPE, new_head=True)


def test_grey_images_are_repeated_over_three_channels(vit):
    (_, grey), rgb = images((1, 32, 32)), models.load(f"hf/{vit}", classes=4, shape=SHAPE)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(
        vit
    )
    plain = models.load(f"hf/{vit}", classes=4, shape=(1, 32, 32))
    for model in (rgb, plain):
        assert torch.equal(model(grey), model(grey.expand(-1, 3, -1, -1)))


def test_images_of_another_size_are_refused(vit):
    with pytest.raises(
        InputError, match=r"fails on an image of shape \(3, 40, 40\): it was trained on 32×32"
    ):
        models.load(f"hf/{vit}", classes=4, shape=(3, 40, 40))


def test_a_folder_that_is_none_and_a_name_that_is_nobodys_are_refused(tmp_path):
    for name in (tmp_path, "no-such-owner/no-such-net"):
        with pytest.raises(InputError, match="cannot be had"):
            models.load(f"hf/{name}", classes=4, shape=SHAPE)


class Bomb:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def test_pickled_code_in_a_folder_is_refused_unrun(vit, tmp_path):
    (vit / "model.safetensors").unlink()
    torch.save({"classifier.bias": Bomb(tmp_path / "it ran")}, vit / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be had"):
        models.load(f"hf/{vit}", classes=4, shape=SHAPE)
    assert not (tmp_path / "it ran").exists()


def test_code_in_a_folder_is_refused_unrun(vit, tmp_path):
    (vit / "mine.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((vit / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForImageClassification"), "mine.Own"),
    }
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be had"):
        models.load(f"hf/{vit}", classes=4, shape=SHAPE)
    assert not (tmp_path / "it ran").exists()
