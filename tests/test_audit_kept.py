"""An audit that is killed, stopped or started twice: what is lost, and that the end is the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch

from nets import conv_net
from poise import InputError, evaluate, store
from poise.attacks import adaptive, pgd
from poise.auditing import audit as auditing
from poise.auditing import kept
from poise.auditing.audit import audit
from poise.data import ImageSet
from poise.devices import sharing

CHOSEN = {"pgd": pgd(steps=3, random_start=True), "adaptive": adaptive(steps=3)}


def some(images=40):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, 8, 8), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 5, (images,), generator=generator)
    return ImageSet("noise", pixels, y, tuple("01234"), batch_size=4)


@pytest.fixture(scope="module")
def net():
    return conv_net(0)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(kept, "EVERY", 0.0)


def run(net, out, **more):
    return audit(net, some(), CHOSEN, out, probe=0, **more)


def content(out):
    """All that the attacks left, but for circumstances."""
    return {f"{name}/{file}": (out / name / file).read_bytes() for name in CHOSEN for file in FILES}


FILES = ("records.parquet", "images.safetensors")


class Stop(Exception):
    pass


def stop_after(calls):
    """A progress that raises once it was told so often."""

    def progress(task, done, of, note=""):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def whole(net, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(net, out)
    return content(out)


@pytest.mark.parametrize("calls", [0, 1, 5, 11, 12, 21])
def test_a_stopped_audit_goes_on_mid_attack_and_ends_the_same(calls, net, whole, tmp_path, at_once):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(net, out, progress=stop_after(calls))
    seen = []
    run(net, out, progress=lambda task, done, of, note="": seen.append((task, done)))
    began = {"pgd": 0, "adaptive": 0} | dict(reversed([(t, d) for t, d in seen]))
    first = {task: next(done for t, done in seen if t == task) for task in CHOSEN}
    assert began == first
    # nothing that was told as done is done again: a call to begin an attack, then one a batch
    assert first["pgd"] == min(40, 4 * max(0, calls)) and first["adaptive"] == min(
        40, 4 * max(0, calls - 11)
    )
    assert content(out) == whole
    assert not list(out.rglob("part-*"))


def test_what_waits_is_written_when_an_audit_is_stopped_gently(net, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(net, out, progress=stop_after(5))
    assert len(list(out.rglob("part-*"))) == 1  # within the half minute
    run(net, out)
    assert content(out) == whole


def in_child(out, beat):
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    kept.EVERY = 0.0
    torch.set_num_threads(1)

    def progress(task, done, of, note=""):
        beat.value += 1
        time.sleep(0.02)

    run(conv_net(0), out, progress=progress)


def test_a_killed_audit_loses_the_batch_it_was_in(net, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    out, beat = tmp_path / "run", context.Value("i", 0)
    child = context.Process(target=in_child, args=(out, beat))
    child.start()
    while beat.value < 6 and child.is_alive():
        time.sleep(0.005)
    with pytest.raises(InputError, match="another command is at work"):
        run(net, out)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    seen = []
    run(net, out, progress=lambda task, done, of, note="": seen.append(done))
    assert seen[0] >= 4 * 4  # six calls: the first to begin, the last may have been in its file
    assert content(out) == whole


def test_a_part_that_was_changed_is_refused(net, tmp_path, at_once):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(net, out, progress=stop_after(4))
    file = next(iter(sorted(out.rglob("part-*"))))
    tensors, facts = store.read_tensors(file)
    tensors["attacked"][0] = tensors["attacked"][0].flip(0)
    store.write_tensors(file, tensors, facts)
    with pytest.raises(InputError, match="does not hold what the run wrote"):
        run(net, out)


def test_records_wait_no_longer_than_half_a_minute(net, tmp_path):
    now = 0.0
    held = kept.Kept(tmp_path, clock=lambda: now)
    records = []
    evaluate(net, some(12), CHOSEN["pgd"], on_records=records.append)
    for first, part, seconds, files in zip((0, 4, 8), records, (10, 20, 9), (0, 1, 1), strict=True):
        now += seconds
        held.add(first, kept.Part(part, float(seconds), ()))
        assert len(list(tmp_path.glob("part-*"))) == files
    assert held.images == 12 and [b.tolist() for b in kept.left(tmp_path, 12, 3)] == [[8, 9, 10], [11]]
    held.write()
    assert kept.whole(tmp_path).seconds == 39.0


# several processes


def one_of_two(rank, port, out, dies_at):
    """One of two processes that torchrun would have started, killed when it begins so many batches."""
    about = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    about |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    os.environ.update(about)
    torch.set_num_threads(1)
    calls, real = [], auditing.evaluate

    def dying(*given, **named):
        calls.append(1)
        if len(calls) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    auditing.evaluate = dying
    auditing._leave = lambda *about: None  # polars hangs in a forked process: the parent joins the records
    run(conv_net(0), out, fabric=sharing(accelerator="cpu"))


def two(out, dies_at=0):
    """The exit codes of two processes of which the second dies in a batch."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        context.Process(target=one_of_two, args=(rank, port, out, rank and dies_at), daemon=True)
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    return [process.exitcode for process in both]


def test_of_two_processes_one_dies_and_one_goes_on_with_the_records_of_both(net, whole, tmp_path):
    out = tmp_path / "run"
    assert two(out, dies_at=4) == [1, -signal.SIGKILL]
    there = {file.name for file in (out / "pgd").glob("part-*")}
    # of batches 0 to 9 the second has 1, 2, 4, 7, 8, and died in the fourth; the first had all the time
    assert there == {f"part-{4 * n:08d}-4.safetensors" for n in (0, 1, 2, 3, 4, 5, 6, 9)}
    seen = []
    run(net, out, progress=lambda task, done, of, note="": seen.append((task, done)))
    assert seen[0] == ("pgd", 32)
    assert content(out) == whole


def test_two_processes_leave_what_one_does(whole, tmp_path):
    assert two(tmp_path / "run") == [0, 0]
    seen = []
    run(conv_net(0), tmp_path / "run", progress=lambda task, done, of, note="": seen.append((task, done)))
    assert seen == [("pgd", 40), ("adaptive", 40)]  # nothing is left to attack
    assert content(tmp_path / "run") == whole
