"""`poise reproduce`: every experiment at its tiny scale, the pages read back against the runs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from poise import metrics
from poise.checks import InputError
from poise.cli import main
from poise.draws import Draw
from poise.paper import book, jobs, suites, tables
from poise.paper.cost import plan
from poise.paper.figures import FIGURES
from poise.paper.jobs import COUNTS, DEFENDED, REFEREES, paper_cells
from poise.paper.looks import AUDITED, REFEREED, Job
from poise.paper.nets import PaperNet, Place
from poise.paper.readings import CITED, OURS, PAPER, Free, Scattered, Unclipped, attacks_of, unheld
from poise.paper.suites import CPU, FULL, TINY
from poise.report import read

COMMAND = ["reproduce", "all", "--scale", "tiny"]
EVERY = book.jobs_of("all", TINY, OURS)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Everything at the tiny scale, and its pages."""
    out = tmp_path_factory.mktemp("paper")
    main([*COMMAND, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def place(ran):
    return Place(ran, Path("data"), TINY.held)


@pytest.fixture(scope="module")
def found(place):
    return jobs.cells(EVERY, place)


def net(setting, defense="Vanilla"):
    return PaperNet(setting=setting, defense=defense, seed=0)


def test_every_table_and_figure_has_its_page_and_numbers(ran):
    for name in (*tables.LAYOUTS, "claims", "scoreboard"):
        page = ran / "results" / f"{name}-tiny.md"
        assert "`poise reproduce all --scale tiny`. Runs: torch 2." in page.read_text()
        numbers = pl.read_parquet(page.with_suffix(".parquet"))
        assert len(numbers) == len(pl.read_csv(page.with_suffix(".csv"))) > 0
    for name in FIGURES:
        page = ran / "results" / f"{name}-tiny.md"
        assert f"({name}-tiny.svg)" in page.read_text()
        assert (ran / "results" / f"{name}-tiny.svg").read_text().startswith("<?xml")
        assert len(pl.read_csv(ran / "results" / f"{name}-tiny.csv")) > 0


def test_cells_are_what_the_records_say(ran, place, found):
    """The chain from records to a table's cell, against a computation of its own."""
    job = jobs.table2(TINY, OURS)[0]
    records = {part.name: part.records for part in read(job.folder(place)).attacked}
    one = found.filter(dataset="digits", reading="ours")

    def cell(attack, metric):
        return one.filter(attack=attack, metric=metric)["mean"].item()

    r = records["ConfSmooth"]
    assert r.correct.double().mean() > 0.5 and r.kept.all()  # a net that has learnt something
    assert cell("ConfSmooth", "msp") == pytest.approx(r.attacked.max(dim=1).values.double().mean().item())
    assert cell("before", "msp") == pytest.approx(r.clean.max(dim=1).values.double().mean().item())
    assert cell("before", "msp") > cell("ConfSmooth", "msp")
    assert cell("PGD", "accuracy") == (records["PGD"].attacked.argmax(1) == r.y).double().mean().item()
    assert cell("ConfSmooth", "ece") == metrics.ece(r.attacked, r.y)
    right = r.attacked.max(dim=1).values[r.correct].double().mean().item()
    assert cell("ConfSmooth", "msp_right") == pytest.approx(right)
    half = (r.attacked.max(dim=1).values >= 0.5).double().mean().item()
    assert cell("ConfSmooth", "above_half") == half
    page = (ran / "results" / "table2-tiny.md").read_text()
    line = next(line for line in page.splitlines() if "| ConfSmooth | ours* |" in line)
    w = r.wasserstein.double()
    shown = f"{w.mean():.4f} ± {w.std(correction=0):.4f} / 0.0966 ± 0.0289"
    assert [entry.strip() for entry in line.split("|")][4:6] == ["1 × 40", shown]


def test_attacks_are_judged_by_the_net_that_was_trained(place):
    """The records' clean probabilities are those of the job's own net on the job's own images."""
    job = next(j for j in jobs.table3(TINY, OURS) if j.net.defense == "TRADES")
    records = read(job.folder(place)).attacked[0].records
    x, y = next(iter(job.net.images("test", place)))
    with torch.no_grad():
        torch.testing.assert_close(job.net.load(place)(x).softmax(dim=1), records.clean)
    assert y.tolist() == records.y.tolist()


def test_what_was_not_run_is_not_filled_in(ran, found):
    page = (ran / "results" / "table1-tiny.md").read_text()
    rows = [line for line in page.splitlines() if "| not run |" in line]
    assert len(rows) == 14  # of the paper's 15 nets one has a stand-in
    assert all(re.fullmatch(r"- / 0\.\d+( ± 0\.\d+)?", c.strip()) for r in rows for c in r.split("|")[5:9])
    board = pl.read_parquet(ran / "results" / "scoreboard-tiny.parquet")
    total = board.row(by_predicate=pl.col("table") == "all", named=True)
    assert (
        total["cells"] == 389 and total["run"] == 0 and total["stand-in"] == 4 + 5 + 8 + 28 + 14 + 35 + 15
    )


def test_verdicts_on_stand_ins_are_marked_and_counted_apart(ran):
    """All tiny nets are on other data than the paper's."""
    judged = pl.read_parquet(ran / "results" / "claims-tiny.parquet")
    verdicts = judged.filter(pl.col("verdict") != "not run")
    assert verdicts["of"].unique().to_list() == ["other data"] and len(verdicts) > 80
    counts = dict(verdicts["verdict"].value_counts().rows())
    page = (ran / "results" / "scoreboard-tiny.md").read_text()
    assert f"| on other data | {counts['holds']} | {counts['fails']} |" in page
    assert "| on the paper's own nets | 0 | 0 |" in page
    page = (ran / "results" / "claims-tiny.md").read_text()
    assert page.count("** (other data) |") == len(verdicts)


def test_the_same_command_again_runs_nothing(ran, place, capsys):
    files = {f: f.stat().st_mtime_ns for f in (ran / "looked").rglob("*.parquet")}
    files |= {f: f.stat().st_mtime_ns for f in (ran / "trained").rglob("model.safetensors")}
    assert jobs.run(EVERY, place) == []
    assert files == {f: f.stat().st_mtime_ns for f in files} and len(files) > 60
    main([*COMMAND, "--out", str(ran), "--dry-run"])
    text = capsys.readouterr().out
    assert "32 jobs, about 0.0 s" in text and "to train" not in text


def test_an_interrupted_attack_is_done_again(place):
    job = jobs.table1(TINY, OURS)[0]
    lost = job.folder(place) / "Adaptive" / "records.parquet"
    kept = (job.folder(place) / "PGD" / "records.parquet").stat().st_mtime_ns
    before = pl.read_parquet(lost)
    lost.unlink()
    assert [c.state for c in plan([job], place)] == ["to look at"] and not list(job.cells(place))
    jobs.run([job], place)
    assert pl.read_parquet(lost).equals(before)
    assert (job.folder(place) / "PGD" / "records.parquet").stat().st_mtime_ns == kept


def test_a_plan_counts_every_forward(tmp_path):
    """Vanilla, 150 images x 2 epochs, then 40 images under 4 attacks of 3 steps, judged twice.

    A step of AT is 10 gradients, the last point's forward, which tells of NaN, and the loss.
    """
    place = Place(tmp_path, Path("data"))
    vanilla, at = (Job(net(TINY.defended[0], name), AUDITED) for name in ("Vanilla", "AT"))
    looked = 40 * 4 * (3 + 1 + 2)
    assert [c.forwards for c in plan([vanilla, at], place)] == [
        150 * 2 + looked,
        150 * 2 * (11 + 1) + looked,
    ]
    twice = plan([at, Job(at.net, REFEREED)], place)
    assert twice[1].state == "to look at" and twice[1].forwards == 40 * (7 * (3 + 3) + 3 * 5)
    missing = plan([Job(net(CPU.transfer[0]), AUDITED)], Place(tmp_path, tmp_path))
    assert "busi is not there" in missing[0].state and missing[0].forwards is None


def test_shares_part_the_nets():
    every = book.jobs_of("all", CPU, OURS)
    parts = [jobs.share(every, part, 3) for part in range(3)]
    assert sorted(j.name for part in parts for j in part) == sorted(j.name for j in every)
    nets = [{j.net.name for j in part} for part in parts]
    assert not (nets[0] & nets[1] or nets[0] & nets[2] or nets[1] & nets[2])


@pytest.mark.parametrize(
    ("job", "name"),
    [  # as runs made before are named: another name would train and attack everything again
        (jobs.table2(TINY, OURS)[0], "lenet-digits-vanilla-0-attacked-614bdf9b"),
        (jobs.table2(TINY, OURS)[1], "lenet-digits-vanilla-0-unheld-67c022f1"),
        (jobs.table1(TINY, OURS)[0], "lenet-digits-transfer-vanilla-0-attacked-70cb1af8"),
        (jobs.table3(TINY, OURS)[4], "lenet-digits-s-0-1-caat-0-attacked-6b16bc08"),
        (jobs.table_s3(TINY, OURS)[0], "lenet-digits-s-0-1-uat-smooth-1-0-attacked-8db6fb54"),
        (
            Job(jobs.table3(TINY, OURS)[8].net, REFEREED),
            "lenet-digits-s-0-1-uat-smooth-unprojected-0-referee-56132355",
        ),
        (jobs.table3(CPU, OURS)[6], "lenet-mnist-s-0-1-uat-smooth-0-attacked-b7991ce3"),
        (jobs.table3(suites.GPU, PAPER)[4], "resnet-18-cifar-10-caat-0-attacked-76906746"),
        (jobs.table2(FULL, CITED)[0], "lenet-mnist-vanilla-0-attacked-174ce3af"),
        (jobs.table1(FULL, OURS)[12], "efficientnet-b0-imagenet-vanilla-0-attacked-51342c1b"),
        (
            jobs.table1(CPU, OURS)[0],
            "efficientnet-b0-breast-cancer-ultrasound-vanilla-0-attacked-63e814b9",
        ),
    ],
)
def test_folders_keep_their_names(job, name):
    assert job.name == name


def test_the_full_scale_is_the_papers():
    """Its tables have as many cells as the jobs make, and its settings those of section 4."""
    per = {"table1": 4, "tableS1": 5, "table3": 4, "table4": 2, "tableS2": 5}
    for name, columns in per.items():
        nets = {(j.net.setting, j.net.defense) for j in tables.LAYOUTS[name].jobs(FULL, OURS)}
        named = [n for n in nets if n[1] not in REFEREES]
        assert len(named) * columns == paper_cells().filter(table=tables.LAYOUTS[name].table).height
    assert {s.published for s in FULL.settings()} == set(
        paper_cells().select("architecture", "dataset").unique().rows()
    )
    assert all(s.faithful for s in FULL.settings())
    epochs = [s.job.epochs for s in (FULL.defended[0], FULL.magnitude, FULL.transfer[0])]
    assert epochs == [200, 5, 10]
    uat = net(FULL.defended[0], "UAT-Smooth")
    assert uat.job.lr == 0.1 and uat.job.batch_size == 128 and uat.job.weight_decay == 5e-4
    assert uat.value.attack.steps == 5 and uat.value.attack.ball.eps == 8 / 255
    attacked = Job(uat, AUDITED).attacks["ConfSmooth"]
    assert attacked.ball.eps == 0.03 and attacked.steps == 20
    assert [len(set(d)) for d in (DEFENDED, COUNTS)] == [7, 5]


def test_only_the_papers_own_setting_counts_as_run():
    assert CPU.magnitude.faithful
    assert not any(s.faithful for s in (*CPU.transfer[:3], *CPU.defended, CPU.counted, *TINY.settings()))
    assert replace(FULL.transfer[0], fast=True, batch_size=1).faithful
    assert not replace(FULL.transfer[0], test=100).faithful


def test_stand_ins_go_by_their_own_name_beside_the_papers():
    told = CPU.told(model={"EfficientNet-B0": "timm/lite"}, data={"MSTAR": "npz:radar/chips.npz"}, seeds=1)
    mstar = next(s for s in told.transfer if s.published == ("EfficientNet-B0", "MSTAR"))
    assert (mstar.architecture, mstar.dataset, mstar.job.model, mstar.job.data) == (
        "lite",
        "chips",
        "timm/lite",
        "npz:radar/chips.npz",
    )
    assert not mstar.faithful and told.seeds == 1
    fresh = FULL.told(weights={"ResNet-50": "a.pt"})
    assert {s.job.weights for s in fresh.transfer if s.architecture == "ResNet-50"} == {"a.pt"}
    assert fresh.defended[1].architecture == "ResNet-50" and fresh.defended[1].job.weights is None
    as_is = CPU.transfer[-1]
    one, other = (net(replace(as_is, job=replace(as_is.job, weights=file))) for file in ("a.pt", "b.pt"))
    assert one.job is None and one.name != other.name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("{}/a.npz#7", "a.npz"),
        ("npz:{}/a.npz#7", "a.npz"),
        ("folder:{}", "test/cat/1.png"),
        ("onnx/{}/net.onnx", "net.onnx"),
        ("{}/net.py:make", "net.py"),
    ],
)
def test_models_and_data_are_known_by_what_is_under_their_paths(name, file, tmp_path):
    def key(folder):
        job = replace(TINY.magnitude.job, model=name.format(folder), data=name.format(folder))
        return net(replace(TINY.magnitude, job=job)).name

    def put(folder, content):
        (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / file).write_bytes(content)

    put("one", b"1234")
    put("two", b"1234")
    before = key(tmp_path / "one")
    assert key(tmp_path / "two") == before
    put("one", b"4321")  # as long as before
    assert key(tmp_path / "one") != before


def test_nets_are_known_by_what_is_in_their_files(tmp_path):
    def name(file, data="npz:a.npz"):
        job = replace(CPU.transfer[0].job, weights=str(tmp_path / file), data=data)
        return net(replace(CPU.transfer[0], job=job)).name

    (tmp_path / "a.pt").write_bytes(b"one")
    (tmp_path / "b.pt").write_bytes(b"one")
    assert name("a.pt") == name("b.pt")
    before = name("a.pt")
    (tmp_path / "a.pt").write_bytes(b"two!")
    assert name("a.pt") != before
    (tmp_path / "x.npz").write_bytes(b"images")
    before = name("b.pt", f"npz:{tmp_path / 'x.npz'}")
    (tmp_path / "x.npz").write_bytes(b"other images")
    assert name("b.pt", f"npz:{tmp_path / 'x.npz'}") != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["table3", "--scale", "full", "--weights", "ResNet-18=a.pt"],
            "--weights names ResNet-18, which would change nothing: it is for nothing",
        ),
        (
            ["table3", "--scale", "full", "--weights", "ResNet-50=a.pt"],  # Table 1's takes them
            "--weights names ResNet-50, which would change nothing",
        ),
        (
            ["table3", "--data", "ImageNet=npz:a.npz"],
            "--data names ImageNet, which would change nothing: it is for MNIST (S = 0.1)",
        ),
        (["table3", "--model", "ResNet-18=resnet18"], "it is for LeNet"),  # LeNet stands in for it here
        (["table1", "--data", "MSTAR=npz:a.npz", "MSTAR=npz:b.npz"], "--data names MSTAR twice"),
        (["table1", "--jobs", "²/3"], "--jobs takes i/n"),
        (["table1", "--model", "ResNet-180=timm/x"], "--model names ResNet-180"),
    ],
)
def test_what_would_change_nothing_is_refused(words, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["reproduce", *words, "--dry-run", "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_transfer_images_are_224_pixels_wide(shared_data, tmp_path):
    """CIFAR-100's are 32, which a frozen ImageNet net was not made for (section 4.1)."""
    arrays = np.load(shared_data / "cifar100_exact_subset.npz")
    parts = {f"{split}_images": arrays[f"x_{split}"][:200] for split in ("train", "test")}
    parts |= {f"{split}_labels": np.arange(200) % 100 for split in ("train", "test")}  # no class empty
    np.savez(tmp_path / "cifar100.npz", **parts)
    setting = next(s for s in FULL.transfer if s.dataset == "CIFAR-100")
    job = replace(setting.job, data=f"npz:{tmp_path / 'cifar100.npz'}")
    found = net(replace(setting, job=job)).images("test", Place(tmp_path, tmp_path))
    assert found.shape == (3, 224, 224) and len(found) == 200


@pytest.mark.parametrize("name", [name for name in tables.LAYOUTS if name != "table2"])
def test_a_score_of_the_papers_own_numbers_is_full_marks(name):
    """The paper's own table as ours: none apart; one cell moved by three deviations is."""
    layout = tables.LAYOUTS[name]
    theirs = paper_cells().filter(table=layout.table).drop("table")
    extra = {"reading": pl.lit("ours"), "n": pl.lit(3), "spread": pl.lit(None), "images": pl.lit(10_000)}
    frame = tables.beside(layout, FULL, theirs.with_columns(**extra))
    row = tables.score({name: frame}).row(0, named=True)
    known = theirs["std"].is_not_null().sum()
    assert (row["cells"], row["run"], row["stand-in"]) == (len(theirs), len(theirs), 0)
    assert (row["judged"], row["within 2 std"]) == (known, known)
    which = theirs.with_row_index().filter(pl.col("std") > 0.002)["index"][0]
    moved = theirs.with_row_index().with_columns(
        mean=pl.when(pl.col("index") == which).then(pl.col("mean") + 3 * pl.col("std")).otherwise("mean")
    )
    frame = tables.beside(layout, FULL, moved.drop("index").with_columns(**extra))
    assert tables.score({name: frame})["within 2 std"].item() == known - 1
    assert frame["apart"].max() == pytest.approx(3 / 2**0.5)


def test_table_2_is_not_judged_by_its_spread_over_images():
    theirs = paper_cells().filter(table="2").drop("table")
    extra = {"reading": pl.lit("unheld"), "n": pl.lit(3), "spread": pl.col("std"), "images": pl.lit(10_000)}
    frame = tables.beside(tables.LAYOUTS["table2"], FULL, theirs.with_columns(**extra))
    row = tables.score({"table2": frame}).row(0, named=True)
    assert (row["run"], row["judged"], row["within 2 std"]) == (8, 0, 0)


def test_readings_of_the_attacks():
    setting = FULL.magnitude
    read = [attacks_of(setting, reading) for reading in (OURS, PAPER, CITED)]
    assert [found["ConfSmooth"].keep for found in read] == ["best", "last", "last"]
    assert [found["Dropout"].ball.keep_fraction for found in read] == [0.05, 0.05, 0.05]
    assert read[2]["Dropout"].uses_labels
    free = unheld(setting)
    assert [type(free[a].ball) for a in free] == [Unclipped, Scattered, Free, Free]
    assert all(free[a].keep == "last" for a in free)


def test_what_is_not_held_leaves_the_box_and_the_ball():
    """A linear net whose gap falls everywhere along -1: twenty steps of 5/255 go that far."""

    def net(x):
        z = x.flatten(1).sum(dim=1)
        return torch.stack([z + 5, torch.zeros_like(z)], dim=1)

    x = torch.full((1, 1, 2, 2), 0.01)
    setting = replace(FULL.magnitude, steps=3)
    pgd = unheld(setting)["PGD"](net, x, torch.tensor([0]))
    torch.testing.assert_close(pgd, x - 0.03)  # held to S, below 0
    free = unheld(setting)["ConfSmooth"](net, x)
    torch.testing.assert_close(free, x - 5 / 255 * (1 + 1.1 + 1.21))  # eq. 5: each step 1.1 times the last
    held = attacks_of(setting, PAPER)["ConfSmooth"](net, x)
    torch.testing.assert_close(held, torch.zeros_like(x))


def test_scattered_changes_are_a_twentieth_twenty_times_as_large():
    x, center = torch.full((1, 1, 400, 400), 0.53), torch.full((1, 1, 400, 400), 0.5)
    moved = Scattered(Unclipped(0.03), 0.05).project(x, center, Draw.of(center, None)) - center
    on = moved != 0
    share, deviation = on.double().mean().item(), (0.05 * 0.95 / 160_000) ** 0.5
    assert abs(share - 0.05) < 4 * deviation
    torch.testing.assert_close(moved[on], torch.full_like(moved[on], 0.6))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["table9"], "unknown target 'table9': did you mean table"),
        (["table1", "--jobs", "2/2"], "--jobs takes i/n with i from 0 to n - 1"),
        (["table1", "--model", "LeNet"], "--model takes NAME=VALUE"),
        (["table1", "--data", "SVHN=npz:x.npz"], "--data names SVHN, which would change nothing"),
        (["table1", "--root", "nowhere"], "busi is not there"),
        (["table1", "--seeds", "0"], "seeds must be a whole number of at least 1"),
    ],
)
def test_refusals(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", *flags, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_what_is_missing_does_not_keep_the_rest_from_its_pages(ran, capsys, monkeypatch):
    """A set that is not there: the other tables are judged, and the reason is said."""
    lost = replace(TINY.transfer[0], dataset="lost", job=replace(TINY.transfer[0].job, data="busi"))
    monkeypatch.setitem(suites.SUITES, "tiny", replace(TINY, transfer=(lost,)))
    words = ["--scale", "tiny", "--out", str(ran), "--root", "nowhere", "--results", str(ran / "others")]
    main(["reproduce", "claims", *words])
    assert "not run: busi is not there" in capsys.readouterr().out
    board = pl.read_parquet(ran / "others" / "scoreboard-tiny.parquet")
    ours = dict(board.select("table", "stand-in").rows())
    assert (ours["table1"], ours["table4"]) == (0, 14)
    assert sorted(f.name for f in (ran / "others").glob("*.md")) == ["claims-tiny.md", "scoreboard-tiny.md"]


def test_readings_keep_their_pages_apart(ran):
    """`cited` after `ours`, some of its looks missing: pages of its own, nothing of the others' touched."""
    before = (ran / "results" / "figure1-tiny.svg").read_bytes()
    main(["reproduce", "figure1", "--scale", "tiny", "--reading", "cited", "--out", str(ran)])
    assert (ran / "results" / "figure1-tiny-cited.svg").read_bytes() != before
    assert (ran / "results" / "figure1-tiny.svg").read_bytes() == before


def test_a_figure_without_its_nets_says_so(tmp_path):
    pages = book.Book(
        suite=TINY,
        reading=OURS,
        place=Place(tmp_path, Path("data")),
        folder=tmp_path / "pages",
        command="poise reproduce figure2",
    )
    with pytest.raises(InputError, match="figure2 needs nets that have not been run"):
        book.write("figure2", pages)
    assert [p.name for p in book.write("table4", pages)] == ["table4-tiny.md"]
    assert "| not run |" in (tmp_path / "pages" / "table4-tiny.md").read_text()


def test_the_head_has_the_command_without_paths(tmp_path):
    """What changes the numbers is in it; where files lie is not."""
    main(
        [
            *("reproduce", "figureS2", "--scale", "tiny", "--out", str(tmp_path / "runs")),
            *("--results", str(tmp_path / "pages"), "--reading", "paper", "--seeds", "1"),
        ]
    )
    text = (tmp_path / "pages" / "figureS2-tiny-paper.md").read_text()
    assert "`poise reproduce figureS2 --scale tiny --reading paper --seeds 1`" in text
    assert str(tmp_path) not in text
