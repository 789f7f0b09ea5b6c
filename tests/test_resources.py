"""Which threads are chosen, who is asked first, and that all is given back."""

import ctypes
import json
import os

import pytest
import torch
from torch import nn

import poise
from poise import data
from poise.cli import main
from poise.resources import suit_threads, using
from poise.training import TrainJob, train

torch.manual_seed(0)
X, Y = torch.rand(4, 1, 8, 8), torch.arange(4)
TINY = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
WIDE = nn.Sequential(
    nn.Conv2d(1, 512, 3, padding=1), nn.Conv2d(512, 64, 3, padding=1), nn.Flatten(), nn.Linear(4096, 10)
)


class Watched(nn.Module):
    """A net that notes how many threads compute it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        self.seen.append(torch.get_num_threads())
        return self.net(x)


@pytest.fixture(autouse=True)
def count(monkeypatch):
    """A machine of two processors whose user has said nothing; threads are counted, not made."""
    for name in [n for n in os.environ if n.startswith(("OMP_", "MKL_", "MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    set_to = [2]
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    yield set_to
    assert set_to[-1] == set_to[0]  # given back


def threads_of(net, attack=None):
    watched = Watched(net)
    poise.evaluate(watched, [(X, Y)], attack or poise.attacks.fgsm())
    return watched.seen[1:]  # the first looks at the work


def noted(folder):
    return json.loads((folder / "job.json").read_text())["threads"]


@pytest.mark.parametrize(("net", "threads"), [(TINY, 1), (WIDE, 2)])
def test_small_nets_get_one_thread_and_wide_ones_all(net, threads):
    assert {*threads_of(net)} == {threads}


def test_work_is_counted_by_hand():
    conv = nn.Conv2d(3, 16, 3, bias=False)  # 27 · 16 · 64 · 64 an image, its output being 64 × 64
    both = nn.Sequential(conv, nn.Flatten(), nn.Linear(16 * 64 * 64, 1))  # and 16 · 64 · 64
    x = torch.zeros(2, 3, 66, 66)
    assert suit_threads(conv, x, images=1000) == 27 * 16 * 64 * 64 * 1000 // 2**23 == 210
    assert suit_threads(both, x, images=1000) == 28 * 16 * 64 * 64 * 1000 // (2 * 2**23) == 109
    assert suit_threads(lambda x: x.mean(dim=(2, 3)), x, images=1000) == 2  # nothing to go by: as it is


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_wins(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    watched = Watched(TINY)
    poise.evaluate(watched, [(X, Y)], poise.attacks.fgsm())
    assert {*watched.seen} == {2}


def test_a_number_set_before_wins(count):
    count[:] = [3]
    watched = Watched(TINY)
    poise.evaluate(watched, [(X, Y)], poise.attacks.fgsm())
    assert {*watched.seen} == {3} and count == [3]


def test_threads_are_given_back_after_an_error():
    def broken(model, x, y=None, *, generator=None):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads_of(TINY, broken)
    assert torch.get_num_threads() == 2
    with pytest.raises(poise.InputError, match="the model fails"):  # when it is asked for its work
        threads_of(nn.Linear(3, 3))
    assert {*threads_of(TINY)} == {1}  # and the next one chooses again


def test_the_outermost_call_chooses():
    with using(2), using(1):
        assert torch.get_num_threads() == 2
        with using(lambda: pytest.fail("asked")):
            assert torch.get_num_threads() == 2


def test_more_than_there_are_is_never_chosen():
    with using(lambda: 210):
        assert torch.get_num_threads() == 2


def test_glibc_is_told_and_told_back_unless_the_user_has(monkeypatch):
    told = []
    libc = type("Libc", (), {"mallopt": staticmethod(lambda *pair: told.append(pair))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr("sys.platform", "linux")
    with using(1):
        assert told == [(-3, 2**25), (-1, 2**31 - 1)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert told[2:] == [(-3, 2**25), (-1, 2**26)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with using(1):
        assert len(told) == 4
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # another C library
    with using(1):
        assert len(told) == 4


class Stop(Exception):
    pass


def stop_after(steps, seen):
    def progress(name, done, total, words=""):
        seen.append(torch.get_num_threads())
        if done == steps:
            raise Stop

    return progress


def test_threads_are_really_set(monkeypatch):
    monkeypatch.undo()
    before = torch.get_num_threads()
    with using(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.filterwarnings("ignore:the trained model gives every image the same class")
def test_a_training_notes_its_threads_and_goes_on_with_them(tmp_path):
    digits, seen = data.digits("train").subset(60, seed=0), []
    job = TrainJob(data="digits", epochs=3, batch_size=30)
    with pytest.raises(Stop), using(2):
        train(job, digits, poise.defenses.vanilla(), tmp_path / "two", progress=stop_after(3, seen))
    assert {*seen} == {2} and noted(tmp_path / "two") == 2
    seen.clear()
    train(job, digits, poise.defenses.vanilla(), tmp_path / "two", progress=stop_after(None, seen))
    assert {*seen} == {2} and noted(tmp_path / "two") == 2
    seen.clear()
    train(job, digits, poise.defenses.vanilla(), tmp_path / "one", progress=stop_after(None, seen))
    assert {*seen} == {1} and noted(tmp_path / "one") == 1
    with pytest.raises(Stop):
        train(job, digits, poise.defenses.vanilla(), tmp_path / "more", progress=stop_after(3, seen))
    with pytest.warns(UserWarning, match="was on 1 threads up to step 2 and goes on with 2"), using(2):
        train(job, digits, poise.defenses.vanilla(), tmp_path / "more")


@pytest.mark.filterwarnings("ignore:the trained model gives every image the same class")
def test_the_flag_wins_over_the_work_and_over_what_was_noted(tmp_path, monkeypatch):
    words = ["--data", "digits", "--images", "40"]
    main(["train", *words, "--epochs", "1", "--out", str(tmp_path / "net")])
    main(["train", *words, "--epochs", "1", "--threads", "2", "--out", str(tmp_path / "two")])
    assert [noted(tmp_path / name) for name in ("net", "two")] == [1, 2]
    run = ["evaluate", "--model", str(tmp_path / "net"), *words, "--out", str(tmp_path / "run")]
    main([*run, "--attacks", "fgsm"])
    main([*run, "--attacks", "noise", "--threads", "2"])
    assert [noted(tmp_path / "run" / name) for name in ("fgsm", "noise")] == [1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    main([*run, "--attacks", "max_miscalibration", "--steps", "1", "--threads", "1"])
    assert noted(tmp_path / "run" / "max_miscalibration") == 1


def test_an_audit_notes_its_threads(tmp_path):
    digits = data.digits("test").subset(112, seed=0)
    found = poise.audit(TINY, digits, out=tmp_path / "a", eps=0.1, held_out=100)
    assert found.made["threads"] == noted(tmp_path / "a") == noted(tmp_path / "a" / "1") == 1
