"""Audits: what was done stays done, a full disk loses nothing that lies on it, nothing is read twice."""

import collections
import copy
import errno
import shutil

import pytest
import torch

from nets import conv_net, images
from poise import attacks, defenses, evaluate, store
from poise.auditing.audit import audit, set_aside
from poise.auditing.timing import Timed
from poise.cli.show import show
from poise.data import ImageSet
from poise.fast import Fast
from poise.fast import prepare as preparing
from poise.report import read
from poise.training import TrainJob, train

CLASSES = tuple("abcde")
FULL = OSError(errno.ENOSPC, "No space left on device")


def some(n=40, seed=0):
    pixels = (images(n, seed, shape=(1, 8, 8)) * 255).round().to(torch.uint8)
    return ImageSet("some", pixels, torch.arange(n) % 5, CLASSES, batch_size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "lenet"
    job = TrainJob(data="some", model="lenet", defense="vanilla", epochs=1)
    train(job, some(), defenses.build("vanilla"), folder)
    return folder


def counted(monkeypatch, owner, name):
    """The calls of a function from now on."""
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(a) or real(*a, **k))
    return calls


def filling(monkeypatch, written, times=1):
    """Let the disk be full when a file of that name is written for the first times."""
    real, left = store._replace, [times]

    def replace(file, write):
        if file.name == written and left[0]:
            left[0] -= 1
            raise FULL
        real(file, write)

    monkeypatch.setattr(store, "_replace", replace)


CHOSEN = {name: attacks.build(name, eps=0.1, steps=2) for name in ("pgd", "confsmooth")}


@pytest.mark.parametrize("written", ["images.safetensors", "records.parquet"])
def test_a_full_disk_is_one_message_and_the_attacks_done_before_stay(run, written, tmp_path, monkeypatch):
    out = tmp_path / "out"
    audit(str(run), some(), {"pgd": CHOSEN["pgd"]}, out)
    before = (out / "pgd" / "records.parquet").stat().st_mtime_ns
    filling(monkeypatch, written)
    with pytest.raises(store.InputError, match=r"out/confsmooth'.*No space left on device\): make room"):
        audit(str(run), some(), CHOSEN, out)
    assert [part.name for part in read(out).attacked] == ["pgd"]
    audit(str(run), some(), CHOSEN, out)
    assert [part.name for part in read(out).attacked] == ["pgd", "confsmooth"]
    assert (out / "pgd" / "records.parquet").stat().st_mtime_ns == before


def test_so_it_is_in_the_diagnostics_and_the_report(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(store, "note", lambda folder, **facts: (_ for _ in ()).throw(FULL))
        with pytest.raises(store.InputError, match="make room"):
            audit(str(run), some(), CHOSEN, out)
    audit(str(run), some(), CHOSEN, out)
    with monkeypatch.context() as patch:
        filling(patch, "report.tex")
        with pytest.raises(store.InputError, match="make room"):
            show([out], tmp_path / "report")


def test_a_disk_without_room_for_the_records_is_refused_before_the_first_attack(run, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", counted(monkeypatch, Timed, "__call__")
    disk = collections.namedtuple("disk", "total used free")
    need = 2 * 8 * (40 * (11 + 2 * 5) + 2 * 8 * 64)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, need - 1))
        with pytest.raises(store.InputError, match=r"may need 0\.0 MB: make room"):
            audit(str(run), some(), CHOSEN, out)
        assert calls == []
        patch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, need))
        audit(str(run), some(), CHOSEN, out)
    written = sum(f.stat().st_size for name in CHOSEN for f in (out / name).glob("*.parquet"))
    assert len(calls) == 2 * 3 and written > 0


def test_the_estimate_comes_before_the_first_attack_and_is_of_what_is_left(run, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []

    def refuse(estimate):
        seen.append([cost.name for cost in estimate.costs])
        assert not list(out.rglob("records.parquet")) or "pgd" not in seen[-1]
        raise store.InputError("too long")

    with pytest.raises(store.InputError, match="too long"):
        audit(str(run), some(), CHOSEN, out, on_estimate=refuse)
    assert not list(out.rglob("records.parquet"))
    audit(str(run), some(), {"pgd": CHOSEN["pgd"]}, out)
    with pytest.raises(store.InputError, match="too long"):
        audit(str(run), some(), CHOSEN, out, on_estimate=refuse)
    assert seen == [["pgd", "confsmooth"], ["confsmooth"]]
    audit(str(run), some(), CHOSEN, out)
    audit(str(run), some(), CHOSEN, out, on_estimate=refuse)  # nothing is left to be asked about


def test_without_anybody_to_tell_no_image_is_attacked_twice(run, tmp_path, monkeypatch):
    calls = counted(monkeypatch, Timed, "__call__")
    tries = counted(monkeypatch, attacks.Descent, "__call__")
    audit(str(run), some(), CHOSEN, tmp_path / "out", probe=0)
    assert len(calls) == len(tries) == 2 * 3  # attacks x batches


def test_a_fast_attack_prepares_once_for_each_model_and_shape(monkeypatch):
    calls = counted(monkeypatch, preparing, "prepare")
    fast, net = Fast(attack=attacks.pgd(eps=0.1, steps=1)), copy.deepcopy(conv_net(shape=(1, 8, 8)))
    data = some(80)  # five batches of 16
    timed = Timed(fast)
    evaluate(net, data, timed)
    assert len(calls) == 1 and len(timed.times) == 5
    assert timed.notes[-1].startswith("layout: ")


def test_a_shown_run_is_read_once(run, tmp_path, monkeypatch, capsys):
    audit(str(run), some(), CHOSEN, tmp_path / "out")
    reads = counted(monkeypatch, store, "read_tensors")
    show([tmp_path / "out"], tmp_path / "report")
    assert len(reads) == len(CHOSEN)
    assert "confsmooth" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "expected"), [(40, 13), (1501, 500), (3000, 500)])
def test_a_third_of_the_images_is_set_aside_and_at_most_500(n, expected):
    data = ImageSet("n", torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n) % 5, CLASSES)
    held, rest = set_aside(data)
    assert (len(held), len(rest)) == (expected, n - expected)
    assert [len(part) for part in set_aside(data, 7)] == [7, n - 7]
    with pytest.raises(store.InputError, match="held_out must be a whole number of at least 1, got 0"):
        set_aside(data.subset(5).take(torch.arange(2)))
