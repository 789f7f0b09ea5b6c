"""Comparisons at equal scale: multiplying the logits changes the raw numbers and nothing else."""

import polars as pl
import pytest
import torch
from torch import nn

from nets import Linear, conv_net, images
from poise import data, defenses, store
from poise.auditing import comparison
from poise.cli import main
from poise.data import ImageSet
from poise.recalibration import Recalibrated, Scale
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
    held, test = data.digits("test").subset(80).divide(40)
    first = comparison.compare(runs[:1], test, held, tmp_path / "out", eps=0.05, steps=1)
    calls = []
    real = comparison.honest
    monkeypatch.setattr(comparison, "honest", lambda *a, **k: calls.append(1) or real(*a, **k))
    frame = comparison.compare(runs, test, held, tmp_path / "out", eps=0.05, steps=1)
    assert len(calls) == 1
    assert frame["seed"].to_list() == [0, 1] and frame["defense"].to_list() == ["vanilla"] * 2
    assert frame.row(0, named=True) == first.row(0, named=True)
    assert (frame["seconds"] > 0).all()
    with pytest.raises(store.InputError, match=r"eps: 0\.05 there, 0\.1 now"):
        comparison.compare(runs, test, held, tmp_path / "out", eps=0.1, steps=1)


def table(*rows):
    """The table's lines by heading, for rows given by what differs from a plain one."""
    plain = {name: 0.5 for name in comparison.COLUMNS if name != "time"}
    plain |= {"defense": "at", "defense_value": "AT-10", "model": "lenet", "epochs": 5, "run": "run"}
    plain |= {"seed": 0, "seconds": 10.0, "collapsed": False}
    frame = pl.DataFrame([plain | row for row in rows], infer_schema_length=None)
    return [dict(zip(comparison.HEADING, line, strict=True)) for line in comparison.table(frame).lines]


def test_the_table_has_means_and_deviations_over_seeds_without_what_collapsed():
    uat = {"defense": "uat", "defense_value": "UAT", "seconds": 5.0}
    at, other = table(
        {"accuracy": 0.4, "k": None},
        {"accuracy": 0.6, "k": 2.0, "seed": 1},
        {"accuracy": 0.1, "seed": 2, "collapsed": True, "seconds": 10.0},
        uat | {"accuracy": 0.25},
    )
    assert at["defense"] == "at (3, 1 collapsed)" and at["k"] == "2.00"
    assert at["acc."] == "0.500 ± 0.141" and at["time"] == "1.00 ± 0.00"
    assert (other["defense"], other["acc."], other["time"]) == ("uat (1)", "0.250", "0.50")


def test_two_configurations_of_one_name_are_two_lines():
    first, second = table({"run": "ten"}, {"defense_value": "AT-5", "run": "five", "accuracy": 0.25})
    assert (first["defense"], first["acc."]) == ("at ten (1)", "0.500")
    assert (second["defense"], second["acc."]) == ("at five (1)", "0.250")
    assert first["time"] == "-"  # relative to which?


def test_a_confidence_above_the_bound_is_marked():
    [line] = table({"raw": 0.8, "at_k": 0.7, "bound": 0.75})
    assert line["raw"] == "0.800 †" and line["at k"] == "0.700"


def test_a_perfect_attack_on_two_classes_is_not_accused():
    """Every label can be flipped, so R = 0 and the bound is 1/2; `auto` stops a margin above it."""
    net = Linear(torch.ones(1, 8, 8) / 8, bias=-0.1)
    pixels = torch.full((8, 1, 8, 8), 8, dtype=torch.uint8)
    data = ImageSet("two", pixels, torch.zeros(8).long(), ("a", "b"))
    x, y = next(iter(data))
    assert (net(x).argmax(dim=1) == y).all()
    found = comparison.honest(net, data, data, eps=0.5)
    assert found.stable == 0 and 0.5 < found.raw < 0.5002
    [line] = table({"raw": found.raw, "bound": found.bound, "stable": found.stable})
    assert "†" not in line["raw"]


def test_the_command_compares_and_writes_its_table(tmp_path, capsys):
    for defense, budget in (("vanilla", []), ("at", ["--eps", "0.05", "--steps", "1"])):
        flags = ["--data", "digits", "--defense", defense, "--epochs", "1", "--images", "40", *budget]
        main(["train", *flags, "--out", str(tmp_path / defense)])
    runs = [str(tmp_path / defense) for defense in ("vanilla", "at")]
    flags = ["--data", "digits", "--images", "20", "--held-out", "60", "--steps", "1", "--eps", "0.05"]
    main(["compare", *runs, *flags, "--out", str(tmp_path / "out")])
    written = (tmp_path / "out" / "comparison.md").read_text()
    assert written.count("\n") == 4 and "| at (1" in written and "matched" in capsys.readouterr().out


def test_what_was_retrained_is_measured_again_and_leaks_and_other_data_are_refused(tmp_path):
    digits = data.digits("train").subset(60)
    job = TrainJob(data="digits", model="lenet", defense="vanilla", epochs=1)
    run, out = tmp_path / "run", tmp_path / "out"
    net = train(job, digits, defenses.build("vanilla"), run)
    held, test = data.digits("test").divide(100)
    test = test.subset(20)
    frame = comparison.compare([run], test, held, out, eps=0.05, steps=1)
    with torch.no_grad():
        net[-1].bias[3] += 100.0
    store.leave(run, {"model.safetensors": store.tensor_bytes(net.state_dict())})
    again = comparison.compare([run], test, held, out, eps=0.05, steps=1)
    assert again["collapsed"].item() and again["accuracy"].item() == (test.y == 3).double().mean()
    assert frame["before"].item() < 0.9 < again["before"].item()
    with pytest.raises(store.InputError, match="other images"):
        comparison.compare([run], test, test, tmp_path / "leak", eps=0.05, steps=1)
    few = ImageSet("few", test.pixels, test.y % 2, ("a", "b"), scale=16)
    with pytest.raises(store.InputError, match=r"a, b\), the model in .* has 10 classes"):
        comparison.compare([run], few, held, tmp_path / "other", eps=0.05, steps=1)
