"""The examples and the notebook, run as they stand on tiny nets and images."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import poise

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """The example's module."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Zeros and ones of digits as image files, in train and test."""
    top = tmp_path_factory.mktemp("photos")
    for split, most in (("train", 40), ("test", 12)):
        data = poise.data.load("digits", split=split)
        for label in (0, 1):
            folder = top / split / f"LABEL_{label}"
            folder.mkdir(parents=True)
            for place in torch.nonzero(data.y == label)[:most, 0].tolist():
                pixels = (data.pixels[place, 0].float() / data.scale * 255).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{place}.png")
    return top


def test_train_and_compare(photos, tmp_path, capsys):
    flags = ["--size", "8", "--epochs", "6", "--lr", "0.02", "--out", str(tmp_path / "runs")]
    records = example("train_uat").main([str(photos), *flags])
    assert {len(found) for found in records.values()} == {24}
    assert "uat-smooth: accuracy" in capsys.readouterr().out
    runs = [str(tmp_path / "runs" / name) for name in records]
    audit = example("compare_nets").main(
        [*runs, f"folder:{photos}", "--images", "3", "--out", str(tmp_path / "a")]
    )
    assert [model.name for model in audit.models] == runs and audit.pairs
    assert (tmp_path / "a" / "audit.html").exists()


def test_audit_a_vit(photos, tmp_path, capsys):
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        num_labels=2,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    words = [
        str(tmp_path / "vit"),
        str(photos),
        "--images",
        "3",
        "--threshold",
        "0.5",
        "--out",
        str(tmp_path / "a"),
    ]
    audit = example("audit_vit").main(words)
    assert audit.asked["attacked"] == 3 and audit.verdict in capsys.readouterr().out


def test_the_notebook_runs_from_top_to_bottom(capsys):
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    records, watched = names["records"], names["watched"]
    assert len(records) == 60 and len(watched) == 4
    last = watched[-1]
    assert last["clean/accuracy"] > 0.8 and last["attacked/confidence"] < last["clean/confidence"]
    assert float(names["kept"].compute()) == poise.metrics.label_kept(records.clean, records.attacked)
    assert "<iframe" in names["audit"]._repr_html_()
