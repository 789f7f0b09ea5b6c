"""Attacks, defenses, models and data that are not poise's: FILE.py:NAME, or what a package offers."""

import json
import sys

import pytest
import torch

import poise
from poise import InputError, attacks, data, defenses, models
from poise.cli import main
from poise.training.schedule import budget, scale
from poise.user_code import code_hash, is_own, offers

PARTS = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from torch.nn import functional as F
from poise.attacks import Aim

@dataclass(frozen=True)
class Still:
    """Leaves every image where it is."""
    eps: float = 0.1
    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="lower")

    def __call__(self, model, x, y=None, *, generator=None):
        return x.clone()

@dataclass(frozen=True)
class Soft:
    eps: float = 0.2

    def __call__(self, model, x, y, generator=None):
        return F.cross_entropy(model(x), y, label_smoothing=self.eps)

def plain(model, x, y, generator=None):
    return F.cross_entropy(model(x), y)

def net(*, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def stripes(*, split):
    draw = torch.Generator().manual_seed(len(split))
    y = torch.arange(40) % 2
    x = torch.rand(40, 1, 8, 8, generator=draw) * 0.2 + 0.6 * y[:, None, None, None]
    return [(x[:20], y[:20], "more"), (x[20:], y[20:])]

def wrong(x):
    return x
'''
OFFERED = """
[poise.attacks]
still = extras.parts:Still
pgd = extras.parts:Still
[poise.defenses]
soft = extras.parts:Soft
[poise.models]
flat-net = extras.parts:net
[poise.data]
stripes = extras.parts:stripes
nothing = extras.parts:nothing
"""


def offer(folder, package, text):
    """Make the folder a place where a package is installed whose metadata offers that."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(text)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of an installed package with such parts; its module is forgotten at the end."""
    folder = tmp_path / "site"
    (folder / "extras").mkdir(parents=True)
    (folder / "extras" / "__init__.py").write_text("")
    (folder / "extras" / "parts.py").write_text(PARTS)
    offer(folder, "poise-extras", OFFERED)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("extras")]:
        del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.py").write_text(PARTS)
    return str(tmp_path / "own.py")


def test_a_part_of_a_package_is_imported_only_when_its_name_is_asked_for(package, capsys):
    main(["list"])
    shown = capsys.readouterr().out
    assert all(f"{name}" in shown for name in ("still", "soft", "flat-net", "stripes"))
    assert "poise-extras 1.2" in shown and "extras.parts:Soft" in shown
    assert attacks.build("pgd") == attacks.pgd() and models.load("lenet") is not None
    assert data.load("digits").name == "digits" and is_own("soft", "defenses", ())
    assert not [name for name in sys.modules if name.startswith("extras")]
    attack = attacks.build("Still", eps=0.3)
    assert "extras.parts" in sys.modules
    assert attack.eps == 0.3 and attack.name == "poise-extras 1.2:still"


def test_the_four_kinds_from_a_package(package):
    attack, defense = attacks.build("still", eps=0.3), defenses.build("soft", eps=0.4)
    net, found = models.load("flat_net", classes=2, shape=(1, 8, 8)), data.load("stripes", split="train")
    records = poise.evaluate(net, found, attack)
    assert torch.equal(records.clean, records.attacked) and len(records) == 40
    x, y = next(iter(found))
    assert defense(net, x, y, None).ndim == 0
    assert budget(defense) == 0.4 and scale(defense, 0.5).eps == 0.2
    assert repr(defense).startswith("UserPart(name='poise-extras 1.2:soft', code='")
    assert not models.stands_alone("flat-net") and models.comes_with_weights("flat-net")


def test_the_same_from_a_file(file, tmp_path):
    net = models.load(f"{file}:net", classes=2, shape=(1, 8, 8))
    found = data.load(f"{file}:stripes", images=10)
    assert found.classes == ("0", "1") and len(found) == 10 and found.name == "own.py:stripes"
    x, y = next(iter(found))
    made, ready = defenses.build(f"{file}:Soft", eps=0.0), defenses.build(f"{file}:plain")
    assert torch.equal(made(net, x, y), ready(net, x, y))
    assert made != defenses.build(f"{file}:Soft") and ready.options == ()
    assert data.load(f"{file}:stripes", preparation=data.Preparation(size=4)).shape == (1, 4, 4)


def test_train_and_attack_with_own_parts_alone(file, tmp_path, capsys):
    run, audit = str(tmp_path / "run"), str(tmp_path / "audit")
    flags = ["--data", f"{file}:stripes", "--accelerator", "cpu"]
    train = ["train", "--model", f"{file}:net", "--defense", f"{file}:Soft", "--eps", "0.1", *flags]
    main([*train, "--epochs", "2", "--lr", "0.05", "--out", run])
    job = json.loads((tmp_path / "run" / "job.json").read_text())["job"]
    assert "name='own.py:Soft'" in job["defense_value"] and "('eps', 0.1)" in job["defense_value"]
    evaluate = ["evaluate", "--model", run, *flags, "--attacks", f"{file}:Still", "--steps", "1"]
    with pytest.raises(SystemExit):  # code of a run folder runs only where it is named
        main([*evaluate[:-2], "--out", audit])
    assert "--code" in capsys.readouterr().err
    main([*evaluate[:-2], "--code", f"{file}:net", "--out", audit])
    assert (tmp_path / "audit" / "Still" / "records.parquet").exists()


def test_a_part_changes_with_its_code_and_its_package(package, tmp_path):
    before = attacks.build("still")
    assert before == attacks.build("still")
    (package / "extras" / "parts.py").write_text(PARTS + "# changed\n")
    assert attacks.build("still").code != before.code
    first = code_hash("soft", "defenses")
    (package / "poise-extras-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: poise-extras\nVersion: 1.3\n"
    )
    assert code_hash("soft", "defenses") != first


def test_what_cannot_be_is_refused_in_one_line(package, file, tmp_path):
    refused = {
        lambda: data.load(f"{file}:wrong"): "does not take split",
        lambda: data.load("nothing"): "has no function 'nothing'",
        lambda: defenses.build(f"{file}:wrong"): r"own.py:wrong takes \(x\)",
        lambda: defenses.build("soft", steps=3): "does not take steps: it takes eps=0.2",
        lambda: attacks.build("stil"): "unknown attack 'stil'",
        lambda: models.load(f"{file}:plain"): "is called with classes= and shape=",
    }
    for call, said in refused.items():
        with pytest.raises(InputError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    offer(package, "others", "[poise.attacks]\nstill = others:Still\n")
    with pytest.raises(InputError, match=r"offered by others 1\.2 and poise-extras 1\.2"):
        attacks.build("still")
    assert [entry.name for entry in offers("attacks")] == ["pgd", "still", "still"]
