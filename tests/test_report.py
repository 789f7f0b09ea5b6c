"""The report: every number recomputed from the records, the page whole in itself."""

import base64
import re

import polars as pl
import pytest
import torch

import poise
from poise.records import Records
from poise.report import figures, html, latex, markdown, summary, tables
from poise.report.runs import Attacked, Audit


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


def test_the_strongest_attack_keeps_labels_before_it_lowers_confidence(two):
    lower = records(attacked=torch.full((40, 4), 0.25))  # lower still, but labels are lost to ties
    assert audit(pgd=lower, confsmooth=two.attacked[1].records).strongest.name == "confsmooth"


def test_printed_tables_hold_one_line_without_attack_and_one_an_attack(two):
    frame = summary([two, audit("other", pgd=records(seed=3))])
    lines = tables.cells(frame)
    assert [line[1] for line in lines] == ["none", "pgd", "confsmooth", "none", "pgd"]
    assert lines[0][2] == f"{poise.metrics.confidence(records().clean):.3f}"
    assert markdown(frame).count("\n") == len(lines) + 2
    tex = latex(frame)
    assert tex.count(r"\\") == len(lines) + 1 and r"$\Delta$W" in tex
    assert latex(summary([audit("a_b & c%", pgd=records())])).count(r"a\_b \& c\%") == 1


def test_the_page_is_whole_in_itself_and_escaped(two):
    page = html.page([two], summary([two]), threshold=0.5)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "net <b> on data" not in page and "net &lt;b&gt; on data" in page
    pictures = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 3
    for picture in pictures:
        svg = base64.b64decode(picture).decode()
        assert svg.rstrip().endswith("</svg>") and "<script" not in svg


def test_the_page_is_the_same_bytes_again(two):
    assert html.pictures(two) == html.pictures(two)


def test_finding_counts_right_answers_alone(two):
    text = html.finding(two, threshold=0.6)
    row = summary([two], threshold=0.6).to_dicts()[1]
    assert f"{row['referred_attacked']:.1%}" in text and "40 of 40 answers stay" in text


def test_a_collapsed_model_is_named():
    r = records()
    same = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).expand(40, 4)
    collapsed = Records(r.y, same, same, r.linf, r.l2, r.wasserstein, r.ssim, r.x, r.x_adv)
    assert "collapsed" in html.finding(audit(pgd=collapsed), threshold=0.5)


def test_histogram_counts_every_image_once(two):
    frame = figures.ConfidenceHistogram(two.attacked[1].records, "confsmooth").frame()
    counts = frame.group_by("stage", "answer").agg(pl.col("count").sum()).sort("stage", "answer")
    assert counts["count"].to_list() == [30, 10, 30, 10]


def test_reliability_frame_matches_the_ece(two):
    r = two.attacked[1].records
    frame = figures.ReliabilityDiagram(r, "confsmooth").frame().filter(pl.col("count") > 0)
    for stage, probs in (("before", r.clean), ("after", r.attacked)):
        part = frame.filter(pl.col("stage") == stage)
        off = (part["count"] * (part["accuracy"] - part["confidence"]).abs()).sum() / len(r)
        assert off == pytest.approx(poise.metrics.ece(probs, r.y), abs=1e-12)


def test_heatmaps_show_the_change_itself(two):
    shown = figures.Heatmaps(two)
    frame = shown.frame().filter(attack="pgd").sort("row", "column")
    r = two.attacked[0].records
    expected = (r.x_adv - r.x)[shown.index, 0].flatten()
    assert torch.allclose(torch.tensor(frame["delta"].to_list()), expected)


def test_threshold_is_checked(tmp_path):
    with pytest.raises(poise.InputError, match="threshold"):
        html.report([], tmp_path, threshold=1.5)
