"""`poise.audit` on nets that train in a second: what it keeps, resumes, compares and says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import poise
from poise import InputError, certify
from poise.auditing import auditor, outcome, pairs, suite, timing
from poise.auditing.answers import Evidence, Seen, answers
from poise.data import ImageSet
from poise.devices import sharing
from poise.recalibration import Recalibrated, Scale

TINY = suite.Size(images=40, steps=4, queries=10, tries=2, longer=6)
EPS = (0.05, 0.1)


@pytest.fixture(scope="module")
def images():
    """Two classes told apart by brightness, with some noise: a linear net learns them nearly."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 2
    level = 0.45 + 0.1 * y[:, None, None, None] + 0.2 * torch.randn(90, 1, 4, 4, generator=generator)
    pixels = (255 * level.clamp(0, 1)).round().to(torch.uint8)
    return ImageSet("grey", pixels, y, ("dark", "bright"), batch_size=16)


@pytest.fixture(scope="module")
def net(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-2.0], [2.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([16.0, -16.0]))
    return model.eval()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(suite.SIZES, "quick", TINY)
    monkeypatch.setattr("poise.metrics.intervals.RESAMPLES", 100)


@pytest.fixture(scope="module")
def result(images, net, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suite.SIZES, "quick", TINY)
        patch.setattr("poise.metrics.intervals.RESAMPLES", 100)
        folder = tmp_path_factory.mktemp("audit") / "run"
        models = {"plain": net, "flat": Recalibrated(net, Scale(0.2))}
        return folder, models, poise.audit(models, images, eps=EPS, out=folder, threshold=0.6)


def test_numbers_are_as_worked_out_from_the_net(result, images):
    _, _, found = result
    model = found.models[0]
    trusted = model.number("trusted")
    assert trusted.n == 40 == found.asked["attacked"]
    kept = [model.number("trusted_kept", eps).estimate for eps in (0.0, *EPS)]
    assert kept[0] == 1 and kept[0] >= kept[1] >= kept[2]
    # the worst case of a linear net: every pixel towards the other class, as far as the label allows
    clean = model.evidence.clean
    lead = np.log(clean.top / (1 - clean.top))
    lowest = np.maximum(lead - 4 * 16 * EPS[0], 0)  # pixels at 0 or 1 cannot all move: none is lower
    assert (model.evidence.under[EPS[0]][0].top >= 1 / (1 + np.exp(-lowest)) - 1e-3).all()


def test_a_change_of_scale_cannot_win(result):
    _, _, found = result
    grounds = {pair.grounds: pair.holds for pair in found.pairs if pair.eps == EPS[0]}
    assert grounds[pairs.SCALE] == grounds[pairs.CONFIDENCE] == pairs.TELLS_NOT
    assert {*grounds} == {pairs.RAW, pairs.SCALE, pairs.CONFIDENCE, pairs.REFERRAL}
    assert "cannot tell" in found.verdict


def test_the_same_call_goes_on_and_finds_the_same(result, images, monkeypatch):
    folder, models, found = result
    monkeypatch.setattr("poise.auditing.audit._attack", None)  # nothing is attacked again
    again = poise.audit(models, images, eps=EPS, out=folder, threshold=0.6)
    assert again.to_json() == found.to_json()
    assert json.loads((folder / "audit.json").read_text()) == json.loads(found.to_json())
    lower = poise.audit(
        models, images, eps=EPS, out=folder, threshold=0.5
    )  # another reading of the records
    assert lower.models[0].number("trusted").count >= found.models[0].number("trusted").count


def test_another_audit_in_the_folder_is_refused(result, images):
    folder, models, _ = result
    with pytest.raises(InputError, match="another configuration"):
        poise.audit(models, images, eps=0.2, out=folder)


def test_the_verdict_counts_and_says_the_budget(result):
    _, _, found = result
    kept = found.models[0].number("trusted_kept", EPS[-1])
    assert (
        f"of {kept.n} right answers with a confidence of 0.6 or more, {kept.count} keep it" in found.verdict
    )
    assert "0.1 of its range" in found.verdict


def test_the_frame_and_the_json_hold_the_same_numbers(result):
    _, _, found = result
    content = json.loads(found.to_json())
    lines = sum(len(m["answers"]) + len(m["recalibrated"]) for m in content["models"])
    assert found.frame().height == lines
    first = content["models"][0]["answers"][0]
    assert first["question"] == "trusted" and first["n"] == 40 and content["schema"] == outcome.SCHEMA


def test_the_json_is_of_its_schema_and_every_field_is_documented(result, tmp_path):
    folder, _, _ = result
    content = outcome.read_content(folder / "audit.json")
    documented = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    for name, fields in outcome.FIELDS.items():
        parts = {"audit": [content], "models": content["models"], "pairs": content["pairs"]}
        parts["answers"] = [answer for model in content["models"] for answer in model["answers"]]
        assert parts[name] and all(part.keys() == fields.keys() for part in parts[name])
        assert all(f"`{field}`" in documented for field in fields)
    assert all(f"`{answer['question']}`" in documented for answer in parts["answers"])
    for change in ({"schema": 2}, {"threshold": "high"}, {"models": [{}]}):
        (tmp_path / "audit.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError):
            outcome.read_content(tmp_path / "audit.json")


class Opaque(nn.Module):
    """A model whose answers carry no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).detach()


def test_a_model_without_gradients_gets_the_black_box_part(images, net):
    found = poise.audit(Opaque(net), images, eps=0.1, images=20)
    assert found.models[0].left_out == (suite.LEFT_OUT,)
    assert found.models[0].number("trusted_kept", 0.1).n > 0
    assert found.models[0].number("accuracy", 0.1).n == 20


def test_batches_of_a_loader_will_do(images, net):
    batches = [(x, y) for x, y in images]
    found = poise.audit(net, batches, eps=0.1, images=20)
    same = poise.audit(net, images, eps=0.1, images=20)
    assert found.models[0].number("confidence", 0.1) == same.models[0].number("confidence", 0.1)


def test_a_time_limit_chooses_images_and_steps_once(images, net, tmp_path):
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditor, "_choice", lambda *_: {"images": 12, "steps": 3, "queries": 5})
        poise.audit(net, images, eps=0.1, out=tmp_path / "a", time_limit=60, on_choice=said.append)
        patch.setattr(auditor, "_choice", None)  # what was chosen stands
        found = poise.audit(net, images, eps=0.1, out=tmp_path / "a", time_limit=60, on_choice=said.append)
    assert found.asked["attacked"] == 12
    assert said == ["to end within 1 min: 12 of 40 images, 3 steps, 5 queries"] * 2


def test_a_short_time_takes_steps_before_images_become_few(images, net, monkeypatch):
    size = replace(TINY, steps=40, queries=100)
    asked = auditor.Asked(
        data=images, held_out=None, epsilons=(0.1,), size=size, threshold=0.5, seed=0, several=False,
        fabric=sharing(accelerator="cpu"), options={"class_map": None},
    )  # fmt: skip
    loaded = {"net": auditor.load_model(net, images)}
    monkeypatch.setattr(auditor, "_costs", lambda *_: float)  # a second an image
    assert auditor._choice(asked, loaded, 1000) == {"images": 90, "steps": 40, "queries": 100}
    assert auditor._choice(asked, loaded, 45) == {"images": 90, "steps": 20, "queries": 50}
    assert auditor._choice(asked, loaded, 9) == {"images": 36, "steps": 10, "queries": 25}


class Clocked(nn.Module):
    """A net that lets a second pass for every forward of an image, and half of one for every way back."""

    def __init__(self, net):
        super().__init__()
        self.net, self.now = net, 0.0

    def forward(self, x):
        self.now += len(x)
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: setattr(self, "now", self.now + len(grad) / 2))
        return logits


@pytest.mark.parametrize("several", [False, True])
def test_the_time_that_is_told_is_what_the_audit_takes(images, net, several, monkeypatch):
    clock = Clocked(net)
    models = {"a": clock, "b": clock} if several else clock
    monkeypatch.setattr(auditor, "pass_costs", lambda *_: (1.0, 0.5))
    monkeypatch.setattr(auditor, "duration", lambda seconds: told.append(seconds))
    told = []
    poise.audit(models, images, eps=EPS, images=40, threshold=0.6, on_choice=len)
    assert clock.now / 1.5 < told[0] < 1.5 * clock.now


def test_passes_are_timed_as_they_take(images, net):
    clock = Clocked(net)
    forward, back = timing.pass_costs(clock, images, clock=lambda: clock.now)
    assert (forward, back) == (1.0, 0.5)


def seen(*tops):
    p = np.array(tops)
    return Seen.of(np.stack([p, 1 - p], axis=1), np.zeros(len(p), dtype=int))


def test_at_equal_referral_rate_both_refer_the_same_share():
    rng = np.random.default_rng(0)
    tops = [0.5 + 0.5 * rng.random(100), 0.5 + 0.2 * rng.random(100)]
    both = tuple(Evidence(np.zeros(100, dtype=int), "ab", seen(*top), {}) for top in tops)
    thresholds = pairs.equal_referral(both, 0.7)
    rates = [(top < threshold).mean() for top, threshold in zip(tops, thresholds, strict=True)]
    assert rates[0] == rates[1] == round(np.mean([(top < 0.7).mean() for top in tops]), 2)


def test_a_difference_within_the_attacks_slack_tells_nothing():
    number = pairs.Number(0.1, 0.05, 0.15, 100)
    pair = pairs.Pair("a", "b", pairs.RAW, 0.1, (number, number), number, slack=0.0)
    assert (pair.holds, replace(pair, slack=0.12).holds) == ("a", pairs.TELLS_NOT)


def test_slack_is_what_a_longer_run_adds():
    y = np.zeros(4, dtype=int)
    whole = Evidence(y, "ab", seen(0.9, 0.9, 0.9, 0.55), {0.1: [seen(0.8, 0.8, 0.6, 0.55)]})
    longer = Evidence(y[:3], "ab", seen(0.9, 0.9, 0.9), {0.1: [seen(0.8, 0.6, 0.8)]})
    found = pairs.slack(whole, longer, np.array([0, 1, 2]), threshold=0.7)
    assert found == pytest.approx(1 / 3)  # two of three stayed, then one


def test_one_bar_a_model_counts_passes(images, net):
    told = []
    poise.audit(
        net,
        images,
        eps=0.1,
        images=10,
        progress=lambda task, done, of, note="": told.append((task, done, of)),
    )
    assert len({task for task, _, _ in told}) == 3  # the suite, recalibrated, longer
    main = [(done, of) for task, done, of in told if task == "Sequential"]
    assert [done for done, _ in main] == sorted(done for done, _ in main) and main[-1][0] == main[-1][1]


def test_names_of_models_differ():
    assert [*auditor._named([nn.Flatten(), nn.Flatten()])] == ["Flatten 1", "Flatten 2"]
    assert [*auditor._named(["a/net", "b/net"])] == ["a/net", "b/net"]


def test_the_command_prints_the_verdict(tmp_path, capsys, monkeypatch):
    from poise.cli import main

    code = tmp_path / "own.py"
    code.write_text(
        "from torch import nn\n"
        "def net(classes, shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    out = tmp_path / "run"
    main(
        ["audit", f"{code}:net", "--data", "digits", "--images", "12", "--eps", "2/255", "--out", str(out)]
    )
    said = capsys.readouterr().out
    assert "audit.json" in said and json.loads((out / "audit.json").read_text())["epsilons"] == [2 / 255]
    with pytest.raises(SystemExit):
        main(["audit", "--data", "digits"])


@pytest.mark.parametrize("certificate", ["ibp", "crown"])
def test_what_is_proved_is_what_a_linear_net_allows(images, net, certificate):
    found = poise.audit(net, images, eps=EPS, threshold=0.6, certificate=certificate).models[0]
    lead = np.log(found.evidence.clean.top / (1 - found.evidence.clean.top))
    trusted = found.evidence.right & (found.evidence.clean.top >= 0.6)
    for eps in EPS:
        lower = found.evidence.certified[eps]
        exact = 1 / (1 + np.exp(-(lead - 4 * 16 * eps)))  # were no pixel near 0 or 1
        assert (lower >= np.maximum(exact, 0.5) - 1e-5).all()
        proved, kept = found.number("trusted_certified", eps), found.number("trusted_kept", eps)
        assert proved.n == kept.n == trusted.sum()
        assert proved.count == (lower[trusted] >= 0.6).sum() <= kept.count
    assert found.number("trusted_certified", EPS[0]).count > 0


def test_bounds_above_what_was_found_stop_an_audit():
    one = Seen.of([[0.8, 0.2]], [0])
    low = Seen.of([[0.7, 0.3]], [0])
    evidence = Evidence(
        y=np.array([0]), classes="ab", clean=one, under={0.1: [low]}, certified={0.1: [0.71]}
    )
    with pytest.raises(certify.UnsoundError, match=r"image 0: an attack within 0\.1 found"):
        answers(evidence, threshold=0.5)


def compared(*holds):
    """An audit of three models of which these hold more, pair by pair."""
    number = pairs.Number(0.1, 0.05, 0.15, 100, 10)
    two = [("a", "b"), ("a", "c"), ("b", "c")]
    signs = [{first: 1, second: -1}.get(who, 0) for (first, second), who in zip(two, holds, strict=True)]
    found = [
        pairs.Pair(
            *names, pairs.SCALE, 0.1, (number, number), pairs.Number(s * 0.1, s * 0.1, s * 0.1, 9), 0.0
        )
        for names, s in zip(two, signs, strict=True)
    ]
    one = Evidence(np.zeros(1, dtype=int), "xyz", seen(0.9), {0.1: [seen(0.8)]})
    models = [outcome.Model(name, name, one, answers(one, threshold=0.5)) for name in "abc"]
    return outcome.Audit(models, found, 0.5, (0.1,), {}, {})


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (("a", "a", "b"), "a holds more than all others on all fair grounds. "),
        (("b", "?", "b"), "b holds more than all others"),
        (
            ("a", "?", "?"),
            "a holds more than 1 of the 2 others on all fair grounds; it cannot be told from c. ",
        ),
        (("?", "?", "?"), "Of 3 models none can be told to hold more"),
    ],
)
def test_of_many_models_the_verdict_names_the_best_first(holds, said):
    verdict = compared(*holds).verdict
    assert verdict.startswith(said)
    assert verdict.endswith(
        "of its range: " + "; ".join(f"{n} 1 of 1, 100 % (21–100 %)" for n in "abc") + "."
    )


def test_of_two_classes_the_threshold_is_halfway_between_chance_and_certainty(images, net):
    found = poise.audit(net, images, eps=0.1, images=10)
    assert found.threshold == 0.75 and not found.refers_nothing
