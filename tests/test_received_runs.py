"""Run folders that came from elsewhere: what they say is read, nothing of it is run, fetched or opened."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import poise
from poise import InputError, models, store, training
from poise.cli import main
from trainings import digits, job

CODE = """
from pathlib import Path
import scale
from torch import nn
Path({trace!r}).touch()

def build(classes, shape):
    return nn.Sequential(nn.Flatten(), scale.Times(), nn.Linear(64, classes))

other = build
"""
SCALE = """
from torch import nn
FACTOR = {factor}

class Times(nn.Module):
    def forward(self, x):
        return FACTOR * x
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's file, the file that it imports, and a run that it was trained in; its trace is gone."""
    (tmp_path / "net.py").write_text(CODE.format(trace=str(tmp_path / "ran")))
    (tmp_path / "scale.py").write_text(SCALE.format(factor=1.0))
    monkeypatch.delitem(sys.modules, "scale", raising=False)
    name = f"{tmp_path / 'net.py'}:build"
    training.train(job(model=name, epochs=1), digits(), poise.defenses.build("vanilla"), tmp_path / "run")
    (tmp_path / "ran").unlink()
    yield SimpleNamespace(folder=tmp_path, run=tmp_path / "run", name=name, trace=tmp_path / "ran")
    sys.modules.pop("scale", None)


def evaluated(run, out, *more, attacks=("pgd",)):
    flags = ["--data", "digits", "--images", "20", "--steps", "1", "--attacks", *attacks]
    main(["evaluate", "--model", str(run), *flags, "--out", str(out), *more])


def rewrite(run, **changes):
    content = store.read_job(run)
    content["job"] |= changes
    content["key"] = store.key_of(content["job"])
    (run / "job.json").write_text(json.dumps(content))


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


def test_a_run_made_from_a_file_runs_it_only_where_it_is_named_again(own, capsys):
    error = refused(capsys, "evaluate", "--model", own.run, "--data", "digits", "--out", own.folder / "a")
    assert f"--code {own.name}" in error
    error = refused(capsys, "audit", own.run, "--data", "digits", "--out", own.folder / "b")
    assert f"--code {own.name}" in error
    with pytest.raises(InputError, match="runs code: if you trust it, name it again"):
        poise.load(own.run)
    with pytest.raises(InputError, match="name it again"):
        poise.load(own.run, code=f"{own.folder / 'net.py'}:other")
    assert not own.trace.exists()
    net = poise.load(own.run, code=own.name)
    assert own.trace.exists() and net(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    evaluated(own.run, own.folder / "a", "--code", own.name)
    facts = store.read_job(own.folder / "a")["job"]
    assert facts["code"] == models.code_digest(own.name) and len(facts["code"]) == 16


def test_a_run_whose_file_moved_is_loaded_by_the_new_place_and_a_changed_file_is_told_of(own):
    there = own.folder / "there"
    there.mkdir()
    for name in ("net.py", "scale.py"):
        (own.folder / name).rename(there / name)
    poise.load(own.run, code=f"{there / 'net.py'}:build")
    (there / "scale.py").write_text(SCALE.format(factor=-1.0))
    with pytest.warns(UserWarning, match="has changed since the training"):
        poise.load(own.run, code=f"{there / 'net.py'}:build")


def test_code_that_changed_does_not_resume(own, capsys):
    evaluated(own.run, own.folder / "a", "--code", own.name)
    (own.folder / "scale.py").write_text(SCALE.format(factor=-1.0))
    with pytest.warns(UserWarning, match="has changed"):
        error = refused(
            capsys, "evaluate", "--model", own.run, "--code", own.name, "--data", "digits",
            "--images", "20", "--steps", "1", "--attacks", "pgd", "--out", own.folder / "a",
        )  # fmt: skip
    assert "holds a run of another configuration (code:" in error
    with pytest.raises(InputError, match=r"another configuration \(code:"):
        training.train(job(model=own.name, epochs=1), digits(), poise.defenses.build("vanilla"), own.run)


def test_a_named_file_that_changed_does_not_resume_either(own, capsys):
    evaluated(own.name, own.folder / "a")
    (own.folder / "scale.py").write_text(SCALE.format(factor=-1.0))
    flags = ("--data", "digits", "--images", "20", "--steps", "1", "--attacks", "pgd")
    error = refused(capsys, "evaluate", "--model", own.name, *flags, "--out", own.folder / "a")
    assert "holds a run of another configuration" in error


@pytest.mark.parametrize(
    "name",
    [
        "{file}:build",
        "HF/owner/name",
        "hf/{folder}",
        "onnx/{folder}/net.onnx",
        "robustbench/Standard",
        "timm/hf-hub:owner/name",
        "timm/hf_hub:owner/name",
        "timm/local-dir:{folder}",
        "timm/../x",
        "torchvision/../x",
        "../x",
    ],
)
def test_an_edited_name_is_neither_run_nor_fetched_nor_opened(name, tmp_path, monkeypatch):
    """A run of lenet whose job.json was edited."""
    training.train(job(epochs=1), digits(), poise.defenses.build("vanilla"), tmp_path / "run")
    (tmp_path / "evil.py").write_text(CODE.format(trace=str(tmp_path / "ran")))
    for package in ("timm", "transformers", "robustbench", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())  # whatever is asked of it fails
    rewrite(tmp_path / "run", model=name.format(file=tmp_path / "evil.py", folder=tmp_path))
    for code in (None, "lenet"):
        with pytest.raises(InputError, match=r"may be downloaded|runs code"):
            poise.load(tmp_path / "run", code=code)
    assert not (tmp_path / "ran").exists()


def test_code_named_for_a_run_without_code_is_not_run(tmp_path):
    training.train(job(epochs=1), digits(), poise.defenses.build("vanilla"), tmp_path / "run")
    (tmp_path / "evil.py").write_text(CODE.format(trace=str(tmp_path / "ran")))
    with pytest.raises(InputError, match="is 'lenet' and not"):
        poise.load(tmp_path / "run", code=f"{tmp_path / 'evil.py'}:build")
    assert not (tmp_path / "ran").exists()
    assert isinstance(poise.load(tmp_path / "run"), nn.Module)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3},
        {"model": None},
        {"classes": 10},
        {"classes": [3]},
        {"shape": "28"},
        {"shape": [1, 28]},
        {"shape": [1, 28.0, 28]},
        {"shape": [1, 10**9, 10**9]},
        {"shape": [1, -28, 28]},
        {"shape": [1, 8000, 8000]},  # its first linear layer would take 30 GB
    ],
    ids=str,
)
def test_what_a_run_claims_is_bounded_before_a_net_is_made(changes, tmp_path):
    training.train(job(epochs=1), digits(), poise.defenses.build("vanilla"), tmp_path / "run")
    rewrite(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=r"job\.json' is damaged \(job: |do not fit the model"):
        poise.load(tmp_path / "run")


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


@pytest.mark.parametrize("images", [257, 256])
def test_a_last_batch_of_one_is_refused_before_the_first_step(images, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", lambda *, classes, shape: Normed())
    few = poise.data.load("digits", split="train", images=images)

    def run():
        vanilla = poise.defenses.build("vanilla")
        return training.train(job(model="normed", epochs=1), few, vanilla, tmp_path / "run")

    if images == 256:
        assert isinstance(run(), Normed)
        return
    with pytest.raises(InputError, match=r"last batch of every epoch is one image.*another --batch-size"):
        run()
