"""A trained model leaves poise: what other programs load answers as the run's model does."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

import poise
from poise import InputError, data, defenses, models, store, training
from poise.cli import main
from poise.training import TrainJob, export


def trained(folder, model, shape=(3, 32, 32), **options):
    """A run of one step on noise of two classes."""
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    images = data.ImageSet("noise", x, torch.arange(8) % 2, ("bird", "cat"), scale=1)
    job = TrainJob(data="noise", model=model, epochs=1, lr=0.01, **options)
    training.train(job, images, defenses.vanilla(), folder)
    return folder, x


def test_timm_loads_the_file_by_its_own_names(tmp_path):
    run, x = trained(tmp_path / "run", "timm/resnet10t.c3_in1k")
    assert export(run, tmp_path / "net.safetensors") == 0
    net = timm.create_model("resnet10t", num_classes=2).eval()
    net.load_state_dict(load_file(tmp_path / "net.safetensors"))
    _, facts = store.read_tensors(tmp_path / "net.safetensors")
    mean, std = (torch.tensor(json.loads(facts[name])).reshape(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(net((x - mean) / std), poise.load(run)(x))
    assert models.names_in(tmp_path / "net.safetensors") == ("bird", "cat")


def test_hugging_face_loads_the_folder(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=2
    )
    torch.manual_seed(0)
    net = transformers.ResNetForImageClassification(config)
    torch.nn.init.normal_(net.classifier[1].weight, std=3)  # logits that cannot be taken for probabilities
    net.save_pretrained(tmp_path / "hub")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size, do_normalize=False).save_pretrained(tmp_path / "hub")
    run, x = trained(tmp_path / "run", f"hf/{tmp_path / 'hub'}")
    code = f"hf/{tmp_path / 'hub'}"
    assert export(run, tmp_path / "mine", code=code) == 0
    net = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "mine").eval()
    torch.testing.assert_close(net(x).logits, poise.load(run, code=code)(x))
    assert net.config.id2label == {0: "bird", 1: "cat"}


def test_onnx_takes_images_as_they_are_and_names_its_classes(tmp_path, capsys):
    run, x = trained(tmp_path / "run", "lenet", (1, 8, 8))
    main(["export", str(run), "--out", str(tmp_path / "net.onnx")])
    assert "its logits differ by at most" in capsys.readouterr().out
    net = models.load(f"onnx/{tmp_path / 'net.onnx'}", classes=None, shape=(1, 8, 8))
    torch.testing.assert_close(net(x[:3]), poise.load(run)(x[:3]))
    assert net.class_names == ("bird", "cat")


def test_what_answers_otherwise_is_not_left(tmp_path, monkeypatch):
    run, _ = trained(tmp_path / "run", "lenet", (1, 8, 8))
    monkeypatch.setattr(store, "write_tensors", lambda file, tensors, facts: wrong(file, tensors, facts))
    wrong_bytes = store.tensor_bytes

    def wrong(file, tensors, facts):
        file.write_bytes(wrong_bytes({name: value + 1 for name, value in tensors.items()}, facts))

    with pytest.raises(InputError, match="gives logits that differ by"):
        export(run, tmp_path / "net.safetensors")
    assert [found.name for found in tmp_path.iterdir()] == ["run"]
    with pytest.raises(InputError, match="is there already"):
        export(run, run)
    with pytest.raises(InputError, match=r"must end in \.safetensors or \.onnx"):
        export(run, tmp_path / "net.pt")
