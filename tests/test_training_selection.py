"""Images are set aside, and the best epoch's weights kept; what a run says of itself."""

import copy
import math
import sys
import types
from collections import Counter

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import fitted
from poise import InputError, defenses, models, store
from poise.data import ImageSet
from poise.defenses import DEFENSES, READINGS
from poise.training import selection, train
from trainings import Spy, bits, digits, job, normed


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture
def with_norm(monkeypatch):
    monkeypatch.setitem(models.MODELS, "normed", normed)


# selection


def unlike(n=40, classes=4):
    """Images that can be told from one another by their first pixel."""
    pixels = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(n)
    return ImageSet("unlike", pixels, torch.arange(n) % classes, tuple("abcd"[:classes]))


def test_validation_images_are_of_every_class_and_never_trained_on(tmp_path):
    spy, images = Spy(), unlike()
    train(job(validation=0.2, batch_size=8), images, spy, tmp_path)
    _, aside = selection.split(images.y, 0.2, 1)
    assert Counter(images.y[aside].tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
    trained = [round(255 * v) for x in spy.seen for v in x[:, 0, 0, 0].tolist()]
    assert Counter(trained) == {i: 3 for i in range(40) if i not in aside.tolist()}


def test_the_scale_of_least_validation_nll_is_noted(images, tmp_path):
    long = job(validation=0.25, epochs=6, lr=0.05, batch_size=16)
    net = train(long, images, defenses.vanilla(), tmp_path)
    _, aside = selection.split(images.y, 0.25, 1)
    with torch.no_grad():
        logits = net(images.pixels[aside].float() / 16)
    k = store.read_job(tmp_path)["k_nll"]
    at, less, more = (F.cross_entropy(s * k * logits.double(), images.y[aside]) for s in (1, 0.999, 1.001))
    assert at < less and at < more  # the loss is convex in k, so there is no other minimum


def test_the_split_is_the_seeds_and_neither_part_may_be_empty():
    y = unlike().y
    splits = [selection.split(y, 0.25, seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    with pytest.raises(InputError, match="empty"):
        selection.split(torch.tensor([0, 1, 2]), 0.1, 0)


@pytest.mark.parametrize(
    ("planted", "expected"), [([0.2, 0.9, 0.4], 2), ([0.2, 0.3, 0.4], 3), ([math.nan, 0.1, 0.1], 2)]
)
def test_the_best_epochs_weights_become_the_model(planted, expected, images, tmp_path, monkeypatch):
    scores, states = iter(planted), []

    def measure(model, data, indices, eps, which):
        states.append(copy.deepcopy(model.state_dict()))
        return {**dict.fromkeys(which, 0.0), "pgd": next(scores)}

    monkeypatch.setattr(selection, "measure", measure)
    got = train(job(validation=0.1, select="pgd"), images, defenses.vanilla(), tmp_path)
    for name, value in states[expected - 1].items():
        assert torch.equal(got.state_dict()[name], value)
    assert store.read_job(tmp_path)["selected_epoch"] == expected
    history = pl.read_parquet(tmp_path / "metrics.parquet")
    assert [*map(str, history["score"])] == [*map(str, map(float, planted))]


class Ramp(nn.Module):
    """Two classes whose logits differ by slope · (mean pixel − 1/2): what attacks reach is known."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        lead = self.slope * (x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([lead / 2, -lead / 2], dim=1)


def test_what_is_measured_on_a_net_whose_worst_case_is_known():
    levels = torch.tensor([255, 204, 148, 0], dtype=torch.uint8)  # means of 1, .8, .58, 0
    images = ImageSet(
        "grey", levels[:, None, None, None].expand(4, 1, 2, 2), torch.zeros(4).long(), ("a", "b")
    )
    found = selection.measure(
        Ramp(10.0),
        images,
        torch.tensor([0, 1, 2, 3]),
        0.1,
        ("accuracy", "pgd", "confsmooth", "confidence"),
    )
    assert found["accuracy"] == 0.75 and found["pgd"] == 0.5  # the third lies .08 from the boundary
    sigmoid = [1 / (1 + math.exp(-lead)) for lead in (4.0, 2.0)]  # both moved by .1
    assert (sum(sigmoid) + 0.5) / 3 <= found["confidence"] < (sum(sigmoid) + 0.63) / 3
    assert found["confsmooth"] == pytest.approx(found["confidence"] * 3 / 4)  # one of the four is wrong


def test_confidence_is_no_reason_to_select_a_net_that_answers_less():
    """Of 100 images one net has 46 right and is sure of them, the other 77, and is less sure."""
    levels = torch.arange(100, dtype=torch.uint8)
    pixels = levels[:, None, None, None].expand(100, 1, 2, 2)
    images = ImageSet("grey", pixels, torch.zeros(100).long(), ("a", "b"))

    class Known(nn.Module):
        """So many answers right, all with one lead."""

        def __init__(self, right, lead):
            super().__init__()
            self.right, self.lead = right, nn.Parameter(torch.tensor(lead))

        def forward(self, x):
            sign = torch.where((255 * x).mean(dim=(1, 2, 3)).round() < self.right, 0.5, -0.5)
            lead = sign * self.lead + 0 * x.sum(dim=(1, 2, 3))
            return torch.stack([lead, -lead], dim=1)

    which = ("accuracy", "confsmooth", "confidence")
    few, many = (
        selection.measure(Known(n, z), images, torch.arange(100), 1e-6, which)
        for n, z in ((46, 5.0), (77, 2.0))
    )
    assert (few["accuracy"], many["accuracy"]) == (0.46, 0.77)
    assert few["confidence"] > many["confidence"]
    assert few["confsmooth"] == pytest.approx(0.46 / (1 + math.exp(-5.0)), abs=1e-4)
    assert few["confsmooth"] < many["confsmooth"]


@pytest.mark.parametrize("select", ["accuracy", "pgd", "confsmooth"])
def test_the_score_is_what_is_selected_by(select, images, tmp_path):
    train(job(validation=0.25, select=select), images, defenses.vanilla(), tmp_path)
    rows = pl.read_parquet(tmp_path / "metrics.parquet")
    told = {"accuracy": "accuracy", "pgd": "pgd_accuracy"}.get(select)
    expected = rows[told] if told else rows["accuracy"] * rows["confidence"]
    assert rows["score"].to_list() == pytest.approx(expected.to_list())


@pytest.mark.parametrize("eps", [0.02, 0.3, 0.45])
def test_the_attacks_measured_with_reach_the_border_of_any_ball(eps):
    """PGD moves a mean of 1/2 + .9 eps over 1/2; ConfSmooth takes a mean of 1 down to 1 - eps."""
    levels = torch.tensor([round(255 * (0.5 + 0.9 * eps)), 255], dtype=torch.uint8)
    pixels = levels[:, None, None, None].expand(2, 1, 2, 2)
    images = ImageSet("grey", pixels, torch.zeros(2).long(), ("a", "b"))
    assert selection.measure(Ramp(10.0), images, torch.tensor([0]), eps, ("pgd",)) == {"pgd": 0.0}
    found = selection.measure(Ramp(10.0), images, torch.tensor([1]), eps, ("confsmooth",))
    assert found["confsmooth"] == pytest.approx(1 / (1 + math.exp(-10 * (0.5 - eps))), abs=1e-6)


def test_a_net_that_cannot_be_attacked_is_measured_as_nan():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        net[1].weight.fill_(math.nan)
    found = selection.measure(net, unlike(), torch.arange(4), 0.1, ("accuracy", "pgd"))
    assert math.isnan(found["pgd"])


@pytest.mark.parametrize(
    ("defense", "eps", "expected"),
    [
        ("uat-smooth", 0.1, 0.1),
        ("vanilla", 0.1, 0.03),
        ("uat-gap-unprojected", 0.1, 0.03),  # its ball of radius 1 holds every image
        ("at", 1.0, 0.03),
        ("at", 0.0, 0.0),
    ],
)
def test_the_budget_is_the_defenses_own_if_it_has_one(
    defense, eps, expected, images, tmp_path, monkeypatch
):
    seen = set()

    def measure(model, data, indices, eps, which):
        seen.add(eps)
        return dict.fromkeys(which, 0.0)

    monkeypatch.setattr(selection, "measure", measure)
    train(
        job(defense, epochs=1),
        images,
        fitted({**DEFENSES, **READINGS}, defense, eps=eps, steps=1),
        tmp_path,
    )
    assert seen == {expected}


@pytest.mark.parametrize(("train_images", "aside", "expected"), [(100, 0, 32), (10, 0, 10), (5000, 0, 100)])
def test_few_images_are_watched(train_images, aside, expected):
    found = selection.choose_watched(torch.arange(train_images), torch.arange(aside))
    assert len(found) == len(set(found.tolist())) == expected
    assert found.max() >= train_images * 0.9  # spread over all of them


def test_validation_images_are_watched_where_there_are_any():
    assert selection.choose_watched(torch.arange(50), torch.arange(50, 60)).tolist() == list(range(50, 60))
    assert len(selection.choose_watched(torch.arange(0), torch.arange(9000))) == 512


# logs


def test_every_epoch_leaves_a_row(images, tmp_path):
    train(job(), images, defenses.build("uat-smooth", eps=0.1, steps=2), tmp_path)
    history = pl.read_parquet(tmp_path / "metrics.parquet")
    assert history.columns == [
        *("epoch", "loss", "seconds", "lr", "images_per_second"),
        *("watched", "accuracy", "pgd_accuracy", "confidence"),
    ]
    assert history["images_per_second"].to_list() == pytest.approx([256 / s for s in history["seconds"]])
    for name in ("accuracy", "pgd_accuracy", "confidence"):
        assert history[name].is_between(0, 1).all()


@pytest.mark.parametrize(("validation", "expected"), [(0.0, "train"), (0.1, "validation")])
def test_a_row_says_which_images_were_looked_at(validation, expected, images, tmp_path):
    train(job(epochs=2, validation=validation), images, defenses.vanilla(), tmp_path)
    assert pl.read_parquet(tmp_path / "metrics.parquet")["watched"].to_list() == [expected] * 2


def test_looking_at_images_changes_nothing(images, tmp_path, monkeypatch, with_norm):
    settings = job(model="normed")
    looked = train(settings, images, defenses.vanilla(), tmp_path / "looked")
    monkeypatch.setattr(selection, "judge", lambda run: {})
    blind = train(settings, images, defenses.vanilla(), tmp_path / "blind")
    assert bits(looked) == bits(blind)


def test_the_progress_tells_how_the_epoch_before_ended(images, tmp_path):
    notes = []
    train(job(), images, defenses.vanilla(), tmp_path, progress=lambda *call: notes.append(call[3]))
    assert notes[0] == "epoch 1/3"
    for word in ("epoch 3/3, loss ", "accuracy ", "under PGD ", "confidence under attack ", "images/s"):
        assert word in notes[-1]


def test_tensorboard_gets_every_column_of_numbers(images, tmp_path, monkeypatch):
    written, files = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder = folder
            files.append(purge_step)

        def add_scalar(self, name, value, step):
            float(value)
            written.append((self.folder, name, step))

        def flush(self):
            pass

        def close(self):
            pass

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    train(job(), images, defenses.vanilla(), tmp_path, tensorboard=True)
    columns = set(pl.read_parquet(tmp_path / "metrics.parquet").columns) - {"epoch", "watched"}
    assert sorted(written) == sorted(
        (str(tmp_path / "tensorboard"), name, epoch) for name in columns for epoch in (1, 2, 3)
    )
    assert files == [1]  # one for the run, from its first epoch on


def test_tensorboard_that_is_not_there_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"poise\[tensorboard\]"):
        train(job(), images, defenses.vanilla(), tmp_path, tensorboard=True)
