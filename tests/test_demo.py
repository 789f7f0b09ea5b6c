"""The headline: a confident model loses its confidence, a trained one keeps it."""

import json
from dataclasses import replace

import pytest

from poise.auditing import demo as shown
from poise.auditing.suite import SIZES
from poise.cli import main
from poise.report import read, summary

AT = "@0.15"  # the larger budget of the demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The command at the larger budget alone, with fewer queries."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "EPS", shown.EPS[1:])
        patch.setitem(SIZES, "quick", replace(SIZES["quick"], queries=40, longer=5))
        main(["demo", "--out", str(out)])
        rows = summary([read(out / "audit" / name) for name in ("1", "2")]).to_dicts()
        named = {(row["model"].split()[1], row["attack"]): row for row in rows}
        yield out, {(m, a.removesuffix(AT)): row for (m, a), row in named.items() if a.endswith(AT)}


def test_the_attacks_bite(demo):
    _, rows = demo
    for attack in ("adaptive", "confsmooth", "auto"):
        row = rows["vanilla", attack]
        assert row["confidence"] > 0.95 and row["accuracy"] > 0.95
        assert row["confidence_attacked"] < row["confidence"] - 0.35
        assert row["label_kept"] == 1 and row["accuracy_attacked"] == row["accuracy"]
        assert row["ece_attacked"] > 0.3
    assert rows["vanilla", "pgd"]["accuracy_attacked"] < 0.3


def test_the_defense_holds(demo):
    _, rows = demo
    for attack in ("adaptive", "confsmooth", "auto"):
        vanilla, trained = rows["vanilla", attack], rows["uat-smooth", attack]
        assert trained["confidence_attacked"] > vanilla["confidence_attacked"] + 0.1
        assert trained["referred_attacked"] < vanilla["referred_attacked"] / 2
    assert rows["uat-smooth", "confsmooth"]["accuracy"] > 0.95


@pytest.mark.parametrize("model", ["vanilla", "uat-smooth"])
def test_the_recommended_attack_is_the_one_that_gets_furthest(demo, model):
    left = {attack: row["confidence_attacked"] for (of, attack), row in demo[1].items() if of == model}
    assert min(left, key=left.get) == "auto"


def test_the_audit_says_which_of_the_two_holds_and_by_how_much(demo):
    out, _ = demo
    found = json.loads((out / "audit" / "audit.json").read_text())
    told = [
        next(a for a in m["answers"] if a["question"] == "trusted_kept" and a["eps"] == 0.15)
        for m in found["models"]
    ]
    assert told[0]["high"] < told[1]["low"]  # the intervals lie apart
    holds = {pair["grounds"]: pair["holds"] for pair in found["pairs"] if pair["eps"] == 0.15}
    assert holds["raw"] == holds["at equal scale"] == holds["at equal clean confidence"] == "uat-smooth"


def test_the_page_is_there_and_a_second_run_trains_nothing(demo, capsys):
    out, _ = demo
    page = (out / "audit" / "audit.html").read_text()
    found = json.loads((out / "audit" / "audit.json").read_text())
    [kept] = [
        a for a in found["models"][0]["answers"] if a["question"] == "trusted_kept" and a["eps"] == 0.15
    ]
    assert f"{kept['count']} of {kept['n']}" in page
    weights = (out / "train-uat-smooth" / "model.safetensors").stat().st_mtime_ns
    main(["demo", "--out", str(out)])
    assert (out / "train-uat-smooth" / "model.safetensors").stat().st_mtime_ns == weights
    told = capsys.readouterr().out
    assert "right answers with a confidence of 0.5 or more" in told and "audit.html" in told


def test_run_folders_hold_no_pickles_and_say_what_they_are(demo):
    out, _ = demo
    kinds = {file.suffix for file in out.rglob("[!.]*") if file.is_file()}  # and empty lock files
    assert kinds == {".json", ".parquet", ".safetensors", ".html", ".md", ".tex"}
    job = json.loads((out / "train-uat-smooth" / "job.json").read_text())
    assert job["versions"]["torch"] and job["seconds"] > 0
