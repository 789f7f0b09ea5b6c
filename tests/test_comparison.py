"""Comparisons at equal scale: multiplying the logits changes the raw numbers and nothing else."""

import polars as pl
import pytest
import torch
from torch import nn

from nets import conv_net, images
from poise import data, defenses, store
from poise.cli import main
from poise.data import ImageSet
from poise.recalibration import Recalibrated, Scale
from poise.recipes import comparison
from poise.training import TrainJob, train

CLASSES = tuple("abcde")


def noisy_set(net, n, seed, wrong=0.25):
    """Images whose labels are the net's answers, but for a share that are drawn at random."""
    x = (images(n, seed) * 255).round().to(torch.uint8)
    with torch.no_grad():
        y = net(x.float() / 255).argmax(dim=1)
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(5, (n,), generator=generator)
    y = torch.where(torch.rand(n, generator=generator) < wrong, other, y)
    return ImageSet("noisy", x, y, CLASSES)


@pytest.fixture(scope="module")
def rows():
    net = conv_net(scale=4.0)
    test, held = noisy_set(net, 60, 1), noisy_set(net, 200, 2)
    return [
        comparison.honest(Recalibrated(net, Scale(k)), test, held, eps=0.01, steps=5, mean=0.8)
        for k in (1.0, 8.6)
    ]


def test_raw_confidence_under_attack_is_gamed_by_a_factor_on_the_logits(rows):
    plain, scaled = rows
    assert scaled.raw > plain.raw + 0.05


def test_the_honest_columns_are_not(rows):
    plain, scaled = rows
    for column in ("accuracy", "stable", "bound", "at_k", "clean_at_k", "matched"):
        assert getattr(scaled, column) == pytest.approx(getattr(plain, column), abs=0.01), column
    assert scaled.k == pytest.approx(plain.k / 8.6, rel=1e-4)


def test_columns_by_hand_for_a_net_that_no_attack_can_move():
    class Still(nn.Module):
        """Answers 0 with confidence .8 to dark images and .6 to bright ones; flat everywhere."""

        def forward(self, x):
            bright = (x.mean(dim=(1, 2, 3), keepdim=False) > 0.5).to(x.dtype)
            lead = torch.log(torch.tensor(4.0)) * (1 - bright) + torch.log(torch.tensor(1.5)) * bright
            return torch.stack([lead, torch.zeros_like(lead)], dim=1) + 0 * x.sum(dim=(1, 2, 3))[:, None]

    pixels = torch.tensor([10, 10, 10, 250], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    test = ImageSet("still", pixels, torch.tensor([0, 0, 1, 0]), ("a", "b"))
    row = comparison.honest(Still(), test, test, eps=0.01, steps=2, mean=0.75)
    assert row.accuracy == row.pgd_accuracy == 0.75
    assert row.stable == row.bound == 1.0
    assert row.before == pytest.approx(0.75)  # (.8 + .8 + .8 + .6) / 4
    assert row.raw == pytest.approx(2.2 / 3)  # of the right ones: .8, .8, .6
    assert row.ece == pytest.approx((3 * (0.8 - 2 / 3) + (1 - 0.6)) / 4, abs=1e-6)
    assert set(row.after) == {"dropout", "adaptive", "confsmooth", "auto", "worst"}
    assert all(value == pytest.approx(0.75) for value in row.after.values())
    assert row.collapsed


def test_runs_are_measured_once_and_the_table_says_which(tmp_path, monkeypatch):
    digits = data.digits("train").subset(100)
    runs = []
    for seed in (0, 1):
        job = TrainJob(data="digits", model="lenet", defense="vanilla", seed=seed, epochs=1)
        train(job, digits, defenses.build("vanilla"), tmp_path / f"run{seed}")
        runs.append(tmp_path / f"run{seed}")
    held = data.digits("test").subset(40)
    first = comparison.compare(runs[:1], held, held, tmp_path / "out", eps=0.05, steps=1)
    calls = []
    real = comparison.honest
    monkeypatch.setattr(comparison, "honest", lambda *a, **k: calls.append(1) or real(*a, **k))
    frame = comparison.compare(runs, held, held, tmp_path / "out", eps=0.05, steps=1)
    assert len(calls) == 1
    assert frame["seed"].to_list() == [0, 1] and frame["defense"].to_list() == ["vanilla"] * 2
    assert frame.row(0, named=True) == first.row(0, named=True)
    assert (frame["seconds"] > 0).all()
    with pytest.raises(store.InputError, match=r"eps: 0\.05 there, 0\.1 now"):
        comparison.compare(runs, held, held, tmp_path / "out", eps=0.1, steps=1)


def test_the_table_has_means_and_deviations_over_seeds_and_marks_what_collapsed():
    row = {name: 0.5 for name in comparison.COLUMNS if name != "time"}
    frame = pl.DataFrame(
        [
            row | {"defense": "at", "seed": 0, "seconds": 10.0, "collapsed": False, "k": None},
            row | {"defense": "at", "seed": 1, "seconds": 20.0, "collapsed": True, "k": 2.0},
            row | {"defense": "uat", "seed": 1, "seconds": 5.0, "collapsed": False, "accuracy": 0.25},
        ],
        infer_schema_length=None,
    )
    first, second = comparison.cells(frame)
    at = dict(zip(comparison.HEADING, first, strict=True))
    assert at["defense"] == "at (2, 1 collapsed)" and at["k"] == "2.00"
    assert at["acc."] == "0.500 ± 0.000" and at["time"] == "1.00 ± 0.00"
    uat = dict(zip(comparison.HEADING, second, strict=True))
    assert (uat["defense"], uat["acc."], uat["time"]) == ("uat (1)", "0.250", "0.25")
    assert comparison.markdown(frame).count("\n") == 4


def test_the_command_compares_and_writes_its_table(tmp_path, capsys):
    for defense in ("vanilla", "at"):
        flags = [
            "--data",
            "digits",
            "--defense",
            defense,
            "--epochs",
            "1",
            "--images",
            "40",
            "--eps",
            "0.05",
        ]
        main(["train", *flags, "--steps", "1", "--out", str(tmp_path / defense)])
    runs = [str(tmp_path / defense) for defense in ("vanilla", "at")]
    flags = ["--data", "digits", "--images", "20", "--held-out", "60", "--steps", "1", "--eps", "0.05"]
    main(["compare", *runs, *flags, "--out", str(tmp_path / "out")])
    written = (tmp_path / "out" / "comparison.md").read_text()
    assert written.count("\n") == 4 and "| at (1" in written and "matched" in capsys.readouterr().out
