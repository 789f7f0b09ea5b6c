"""The report: every number recomputed from the records, the page whole in itself."""

import re
from dataclasses import replace

import pytest
import torch

import poise
from poise.records import Records
from poise.report import latex, markdown, overview, summary
from poise.report.runs import Attacked, Audit, tell_apart


def softmax(seed, n, k=4, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, k, generator=generator)).softmax(dim=1)


def records(n=40, seed=0, attacked=None):
    clean = softmax(seed, n)
    y = clean.argmax(dim=1).clone()
    y[: n // 4] = (y[: n // 4] + 1) % 4  # a quarter of the answers is wrong
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    x_adv = (x + 0.05).clamp(0, 1)
    attacked = clean if attacked is None else attacked
    distances = [torch.full((n,), value) for value in (0.05, 0.4, 0.05, 0.9)]
    return Records(y, clean, attacked, *distances, x[:8], x_adv[:8])


def flatter(probs):
    """The same prediction with half the log-odds."""
    return (probs.log() / 2).softmax(dim=1)


def audit(title="net <b> on data", **attacked):
    content = {
        "job": {"kind": "audit", "model": "net", "defense": None},
        "versions": {"torch": "2"},
        "commit": None,
        "device": "cpu",
        "threads": 1,
        "started": "now",
    }
    parts = tuple(Attacked(name, "Attack()", 1.5, r) for name, r in attacked.items())
    return Audit(title, content, parts)


@pytest.fixture
def two():
    r = records()
    return audit(pgd=records(attacked=softmax(9, 40)), confsmooth=records(attacked=flatter(r.clean)))


def test_summary_holds_what_the_metrics_say(two):
    row = summary([two], threshold=0.6).to_dicts()[1]
    r = two.attacked[1].records
    assert row["confidence"] == poise.metrics.confidence(r.clean)
    assert row["confidence_attacked"] == poise.metrics.confidence(r.attacked)
    assert row["ece_attacked"] == poise.metrics.ece(r.attacked, r.y)
    assert row["label_kept"] == 1.0
    right = r.clean.argmax(1) == r.y
    assert row["referred_attacked"] == pytest.approx(
        ((r.attacked.max(1).values < 0.6) & right).sum().item() / right.sum().item()
    )


def of(probs):
    """Records of right answers 0, .8 sure, attacked to these, and of a wrong answer 1 that stays."""
    n = len(probs) + 1
    clean = torch.tensor([*[[0.8, 0.1, 0.1]] * len(probs), [0.1, 0.8, 0.1]])
    flat = [torch.zeros(n)] * 4
    x = torch.zeros(n, 1, 8, 8)
    return Records(torch.zeros(n).long(), clean, torch.tensor([*probs, [0.1, 0.8, 0.1]]), *flat, x, x)


def test_the_headline_is_each_images_worst_case_over_the_attacks():
    first = of([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])  # mean .7
    second = of([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.6, 0.2, 0.2]])  # mean .6
    both = audit(adaptive=first, confsmooth=second)
    assert both.worst.records.attacked[:, 0].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6, 0.1])
    text = overview.finding(both, threshold=0.5)
    assert "falls from 0.80 to 0.56" in text
    assert "Of the 4 right answers, 2 (50.0%) end below a confidence of 0.5 (0.0% before)" in text


def test_flipped_answers_are_lost_and_no_referrals():
    flipped = of([[0.35, 0.4, 0.25], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1]])
    row = summary([audit(pgd=flipped)]).to_dicts()[0]
    assert row["referred_attacked"] == 0.25 and row["lost"] == 2  # image 2 alone is referred
    text = overview.finding(audit(pgd=flipped), threshold=0.5)
    assert "1 (25.0%)" in text and "pgd changes 2 of 5 answers, which are lost, not referred" in text


def test_words_follow_the_numbers():
    raised = of([[0.99, 0.005, 0.005]] * 4)
    text = overview.finding(audit(overconfidence=raised), threshold=0.5)
    assert (
        "stays at 0.80" in text
        and "Under overconfidence the mean confidence rises from 0.80 to 0.95" in text
    )


def told(title="net on data", attack="Auto(eps=0.1, steps=20)", **job):
    found = audit(title, auto=records())
    content = {**found.content, "job": {**found.content["job"], **job}}
    return Audit(title, content, (replace(found.attacked[0], attack=attack),))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (told(seed=0), told(seed=1), ("seed 0", "seed 1")),
        (told(weights="abc"), told(weights="xyz"), ("weights abc", "weights xyz")),
        (told(), told(attack="Auto(eps=0.3, steps=20)"), ("eps 0.1", "eps 0.3")),
        (told(images=10), told(images=20), ("n 10", "n 20")),
        (told(), told(), ("run 1", "run 2")),
    ],
)
def test_audits_of_one_title_are_told_apart_by_what_differs(one, other, words):
    titles = [found.title for found in tell_apart([one, other, told("another")])]
    assert titles == [f"net on data, {words[0]}", f"net on data, {words[1]}", "another"]
    lines = overview.cells(summary([one, other]))
    assert [line[1] for line in lines] == [
        "none",
        "auto",
        "none",
        "auto",
    ]  # each with a clean row of its own


def test_long_titles_never_merge():
    """However long the title and the words behind it, each audit has a clean row of its own."""
    attack = "Auto(eps={}, keep=best, margin=0.0001, norm=linf, smoothing={}, steps=20)"
    some = [
        told("z" * 200, attack.format(eps, smoothing), seed=seed, weights=weights)
        for eps, smoothing, seed, weights in ((0.1, 1, 0, "a"), (0.2, 1, 0, "a"), (0.1, 2, 1, "b"))
    ]
    frame = summary(some)
    assert frame["model"].n_unique() == 3 and [line[1] for line in overview.cells(frame)].count("none") == 3


NASTY = {
    "script": "<script>alert(1)</script>",
    "formula": r"$\frac{$",
    "input": r"\input{/etc/passwd}",
    "cells": "a | b\nc `d` [new] *e* _f_",
    "hidden": "_\u202eabc\x1b[31m\x07",
    "not text": "caf\udce9",
    "long": "z" * 255,
}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_any_name_is_shown_and_none_is_obeyed(name, tmp_path):
    found = audit(f"{name} on {name}", **{name: records(attacked=flatter(records().clean))})
    found.content["findings"] = [{"attack": name, "seen": name, "advice": name, "share": 1.0, "kind": "k"}]
    page = overview.write_report([found], summary([found]), tmp_path, threshold=0.5)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "\x1b" not in text and "\u202e" not in text
    markdown_text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown_text and "`d`" not in markdown_text and "*e*" not in markdown_text
    rows = [line for line in markdown_text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {row.count("|") for row in rows} == {len(overview.HEADING) + 1}
    tex = (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert r"\input" not in tex and r"\frac" not in tex


def test_printed_tables_hold_one_line_without_attack_and_one_an_attack(two):
    frame = summary([two, audit("other", pgd=records(seed=3))])
    lines = overview.cells(frame)
    assert [line[1] for line in lines] == ["none", "pgd", "confsmooth", "none", "pgd"]
    assert lines[0][2] == f"{poise.metrics.confidence(records().clean):.3f}"
    assert markdown(frame).count("\n") == len(lines) + 2
    tex = latex(frame)
    assert tex.count(r"\\") == len(lines) + 1 and r"$\Delta$W" in tex
    assert latex(summary([audit("a_b & c%", pgd=records())])).count(r"a\_b \& c\%") == 1


def test_the_page_is_whole_in_itself_and_escaped(two):
    page = overview.page([two], summary([two]), threshold=0.5)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "net <b> on data" not in page and "net &lt;b&gt; on data" in page
    assert "<script" not in page and page.count('<svg class="drawing"') == 4
    assert page.count('src="data:image/png;base64,') == 3 * len(two.attacked)
    assert page == overview.page([two], summary([two]), threshold=0.5)


def test_finding_counts_right_answers_alone(two):
    text = overview.finding(two, threshold=0.6)
    row = summary([two], threshold=0.6).to_dicts()[1]
    assert f"{row['referred_attacked']:.1%}" in text and "lost" not in text.split("pgd changes")[0]


def test_a_collapsed_model_is_named():
    r = records()
    same = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).expand(40, 4)
    collapsed = Records(r.y, same, same, r.linf, r.l2, r.wasserstein, r.ssim, r.x, r.x_adv)
    assert "collapsed" in overview.finding(audit(pgd=collapsed), threshold=0.5)


def test_the_figures_count_every_image_once_before_and_in_the_worst_case(two):
    drawn = overview.draw_worst(two, 0.5)
    assert [of.title.rpartition(",")[2] for of in drawn] == [" before the change", " in the worst case"] * 2
    for of in drawn[:2]:
        right, wrong = (sum(int(line[place]) for line in of.table.lines) for place in (1, 2))
        assert (right, wrong) == (30, 10)


def test_one_image_is_shown_under_each_attack():
    """The right answer that is least sure in its worst case, though a wrong one is less sure."""
    flipped = of([[0.8, 0.1, 0.1], [0.35, 0.4, 0.25], [0.6, 0.2, 0.2]])
    first = replace(flipped, y=torch.tensor([1, 0, 0, 0]))
    second = replace(first, attacked=first.attacked.roll(1, dims=0), x_adv=first.x + 0.2)
    shown = overview.changes(audit(pgd=first, auto=second), 10**6)
    assert [(i["name"], round(i["before"], 4), round(i["after"], 4), i["lost"]) for i in shown] == [
        ("pgd", 0.8, 0.6, False),
        ("auto", 0.8, 0.4, True),
    ]
    assert [i["largest"] for i in shown] == ["0", "51"]


def test_threshold_is_checked(tmp_path):
    with pytest.raises(poise.InputError, match="threshold"):
        overview.report([], tmp_path, threshold=1.5)
