"""However a run is stopped, the same call goes on with the bits of one that never was."""

import collections
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings

import polars as pl
import pytest
import torch
from torch import nn

from poise import InputError, data, defenses, models, store
from poise.training import Stopped, TrainJob, checkpoint, train
from poise.training.checkpoint import NEWEST, PREVIOUS, check_room, content_digest
from trainings import Stop, bits

STEPS = 12  # three epochs of four


@pytest.fixture(scope="module")
def images():
    return data.load("digits", split="train", images=256)


def rich_job(**changes):
    """A job with all that a checkpoint has to keep: momentum, buffers, draws, an average, a best epoch."""
    settings = {"model": "drawing", "epochs": 3, "batch_size": 64, "lr": 0.05, "seed": 1}
    options = {"ema": 0.5, "augment": "crop-flip", "validation": 0.1, "select": "accuracy", "warmup": 1}
    return TrainJob(data="digits", defense="at", **{**settings, **options, "decay_norms": False, **changes})


def drawing_net(*, classes=10, shape=(1, 8, 8)):
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * (height - 2) * (width - 2), classes),
    )


@pytest.fixture(autouse=True)
def drawing(monkeypatch):
    monkeypatch.setitem(models.MODELS, "drawing", drawing_net)


DEFENSE = defenses.build("at", eps=0.1, steps=2)


def history(folder):
    return pl.read_parquet(folder / "metrics.parquet").drop("seconds", "images_per_second")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The run that nobody stopped: its weights and its history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "drawing", drawing_net)
        folder = tmp_path_factory.mktemp("whole") / "run"
        return bits(train(rich_job(), images, DEFENSE, folder)), history(folder)


def resumed(images, folder, whole):
    """Go on to the end; the steps that took."""
    steps, before = [], signal.getsignal(signal.SIGTERM)
    net = train(rich_job(), images, DEFENSE, folder, progress=lambda _, done, of, note: steps.append(done))
    assert signal.getsignal(signal.SIGTERM) is before
    assert bits(net) == whole[0]
    assert history(folder).equals(whole[1])
    assert not (folder / NEWEST).exists() and not (folder / PREVIOUS).exists()
    return steps


def at_step(step, do):
    def progress(task, done, of, note):
        if done == step:
            do()

    return progress


def cut():
    raise Stop


def cut_at(step, images, folder, **changes):
    with pytest.raises(Stop):
        train(rich_job(**changes), images, DEFENSE, folder, progress=at_step(step, cut))


@pytest.fixture(scope="module")
def cuts(images, tmp_path_factory):
    """Runs that lost their power within the second and the third epoch, as they were left."""
    folders = {step: tmp_path_factory.mktemp("cuts") / str(step) for step in (6, 10)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "drawing", drawing_net)
        for step, folder in folders.items():
            cut_at(step, images, folder)
    return folders


@pytest.fixture
def cut_at_6(cuts, tmp_path):
    """A run with one checkpoint, of the first epoch."""
    return shutil.copytree(cuts[6], tmp_path / "run")


@pytest.fixture
def cut_at_10(cuts, tmp_path):
    """A run with two checkpoints, of the first and the second epoch."""
    return shutil.copytree(cuts[10], tmp_path / "run")


# power cuts, kill -9


@pytest.mark.parametrize(("step", "first"), [(1, 1), (4, 1), (6, 5), (8, 5), (12, 9)])
def test_a_cut_run_goes_on_after_its_last_whole_epoch(step, first, images, tmp_path, whole):
    cut_at(step, images, tmp_path)
    assert resumed(images, tmp_path, whole) == list(range(first, STEPS + 1))


SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_training_stops import DEFENSE, drawing_net, rich_job
from poise import data, models
from poise.training import train

models.MODELS["drawing"] = drawing_net
at = int(sys.argv[3])

def progress(task, done, of, note):
    if done == at:
        os.kill(os.getpid(), signal.SIGKILL)

train(rich_job(), data.load("digits", split="train", images=256), DEFENSE, sys.argv[2], progress=progress)
"""


def test_kill_9_within_an_epoch_then_the_same_again_gives_equal_bits(images, tmp_path, whole):
    here = os.path.dirname(__file__)  # noqa: PTH120
    command = [sys.executable, "-c", SCRIPT, here, str(tmp_path / "run"), "6"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run" / NEWEST).exists()
    assert resumed(images, tmp_path / "run", whole) == list(range(5, STEPS + 1))


# signals


@pytest.mark.parametrize("step", [1, 6, 11])
def test_sigterm_saves_the_step_that_it_came_in(step, images, tmp_path, whole):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    ask = at_step(step, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match=f"after step {step} of 12.*same command") as stopped:
        train(rich_job(), images, DEFENSE, tmp_path, progress=ask)
    assert isinstance(stopped.value, SystemExit) and str(tmp_path) in str(stopped.value)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert resumed(images, tmp_path, whole) == list(range(step + 1, STEPS + 1))


def test_ctrl_c_does_too_and_a_run_can_be_stopped_again_and_again(images, tmp_path, whole):
    for step in (2, 4, 7):  # within an epoch, at the end of one, within the next
        ask = at_step(step, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(rich_job(), images, DEFENSE, tmp_path, progress=ask)
    assert resumed(images, tmp_path, whole) == list(range(8, STEPS + 1))


def test_sigterm_in_the_last_step_lets_the_run_finish(images, tmp_path, whole):
    ask = at_step(12, lambda: signal.raise_signal(signal.SIGTERM))
    assert bits(train(rich_job(), images, DEFENSE, tmp_path, progress=ask)) == whole[0]


def test_the_second_signal_is_the_callers(images, tmp_path):
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:

        def twice():
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
            signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Stopped):
            train(rich_job(), images, DEFENSE, tmp_path, progress=at_step(1, twice))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [1]


def test_training_works_outside_the_main_thread(images, tmp_path, whole):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(bits(train(rich_job(), images, DEFENSE, tmp_path)))
    )
    thread.start()
    thread.join()
    assert found == [whole[0]]


# damaged checkpoints


def shorten(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    """One bit, in the middle of the weights."""
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [shorten, flip, lambda file: file.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, images, cut_at_10, whole):
    damage(cut_at_10 / NEWEST)
    with pytest.warns(UserWarning, match="the one before it counts") as told:
        steps = resumed(images, cut_at_10, whole)
    assert str(cut_at_10 / NEWEST) in str(told[0].message)
    assert steps == list(range(5, STEPS + 1))  # the newest was of the second epoch


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before_it(
    images, cut_at_10, monkeypatch, whole
):
    shorten(cut_at_10 / NEWEST)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:  # the first save after it fails
        patch.setattr(store, "write_tensors", full)
        with pytest.warns(match="damaged"), pytest.raises(InputError, match="No space left"):
            train(rich_job(), images, DEFENSE, cut_at_10)
    assert resumed(images, cut_at_10, whole) == list(range(5, STEPS + 1))


def test_a_missing_newest_checkpoint_is_the_one_before_without_a_word(images, cut_at_10, whole):
    (cut_at_10 / NEWEST).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = resumed(images, cut_at_10, whole)
    assert steps[0] == 5


def test_two_damaged_checkpoints_are_refused_by_name(images, cut_at_10):
    shorten(cut_at_10 / NEWEST), flip(cut_at_10 / PREVIOUS)
    with pytest.warns(match="damaged"), pytest.raises(InputError, match="remove them") as refusal:
        train(rich_job(), images, DEFENSE, cut_at_10)
    assert str(cut_at_10 / NEWEST) in str(refusal.value) and str(cut_at_10 / PREVIOUS) in str(refusal.value)


def test_checkpoints_hold_no_pickles(images, cut_at_10):
    tensors, facts = store.read_tensors(cut_at_10 / NEWEST)
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "average", "best"}
    assert set(facts) == {"step", "seconds", "rows", "scaler", "key", "digest"} and facts["step"] == "8"


def test_the_digest_sees_all_that_is_there_and_nothing_else():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(3, dtype=torch.int64)
    one, facts = {"a": a, "b": b}, {"step": "3", "rows": "[]"}
    assert content_digest(one, facts) == content_digest(
        {"b": b, "a": a.clone()}, {"rows": "[]", "step": "3"}
    )
    others = [
        *({"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a, "b": b + 1}),
        *({"a": a[None], "b": b}, {"a": a.view(torch.int32), "b": b}),
    ]
    told = [{"step": "1", "rows": "[]"}, {"step": "3", "rows": "[1]"}, {"step": "3"}, {}]
    assert (
        len(
            {
                content_digest(one, facts),
                *(content_digest(t, facts) for t in others),
                *(content_digest(one, t) for t in told),
            }
        )
        == 10
    )


def rewrite(file, change):
    """Change a checkpoint's facts as a flipped bit would, its digest left as it is."""
    tensors, facts = store.read_tensors(file)
    store.write_tensors(
        file, tensors, {**facts, **{k: v for k, v in change(facts).items() if v != facts.get(k)}}
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {"step": "9"},  # one bit of the 8
        lambda facts: {"step": "99"},
        lambda facts: {"rows": facts["rows"].replace("1", "3", 1)},
        lambda facts: {"seconds": "1e9"},
        lambda facts: {"scaler": "3"},
        lambda facts: {"more": "1"},
    ],
    ids=["step", "last step", "rows", "seconds", "scaler", "more"],
)
def test_a_fact_that_is_not_what_was_written_is_damage(change, cut_at_10):
    key, file = store.read_job(cut_at_10)["key"], cut_at_10 / NEWEST
    checkpoint.read(file, key)
    rewrite(file, change)
    with pytest.raises(InputError, match="does not hold what was written"):
        checkpoint.read(file, key)


def test_a_checkpoint_of_another_run_is_not_taken(images, tmp_path, cut_at_10):
    other = tmp_path / "other"
    cut_at(10, images, other, seed=2)
    for name in (NEWEST, PREVIOUS):
        (cut_at_10 / name).write_bytes((other / name).read_bytes())
    with (
        pytest.warns(match="belongs to another run"),
        pytest.raises(InputError, match="no whole checkpoint"),
    ):
        train(rich_job(), images, DEFENSE, cut_at_10)


def test_a_checkpoint_with_one_flipped_bit_is_never_used(cuts, tmp_path):
    """Anywhere in the file: length, header, facts or tensors."""
    key, content = store.read_job(cuts[6])["key"], (cuts[6] / NEWEST).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for seed in range(40):
        generator, broken = random.Random(seed), bytearray(content)
        broken[generator.randrange(header if seed % 2 else len(content))] ^= 1 << generator.randrange(8)
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(InputError):
            checkpoint.read(tmp_path / "broken", key)


# disks


def test_a_disk_without_room_for_three_checkpoints_is_refused_before_the_first_step(
    images, tmp_path, monkeypatch
):
    state = drawing_net().state_dict().values()
    one = 4 * sum(t.numel() * t.element_size() for t in state)  # weights, momentum, average, best epoch
    disk = collections.namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 3 * one - 1))
    steps = []
    with pytest.raises(InputError, match=r"MB free and the results may need 0\.1 MB") as refusal:
        train(rich_job(), images, DEFENSE, tmp_path, progress=lambda *step: steps.append(step))
    assert steps == [] and str(tmp_path) in str(refusal.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 3 * one))
    train(rich_job(epochs=1), images, DEFENSE, tmp_path / "enough")


def test_three_checkpoints_do_fit_into_what_is_asked_for(images, tmp_path, monkeypatch):
    asked = []
    real = check_room
    disk = collections.namedtuple("disk", "total used free")

    def note(folder, run):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 0))
            with pytest.raises(InputError) as refusal:
                real(folder, run)
        asked.append(float(str(refusal.value).split("need ")[1].split(" MB")[0]))

    monkeypatch.setattr("poise.training.checkpoint.check_room", note)
    cut_at(10, images, tmp_path)
    size = (tmp_path / NEWEST).stat().st_size
    assert 3 * size / 1e6 == pytest.approx(asked[0], abs=0.08)  # 0.1 MB is how it is told


def test_a_folder_that_cannot_be_written_any_more_is_refused(images, tmp_path, monkeypatch):
    cut_at(2, images, tmp_path)

    def refuse(**about):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="cannot be written: Read-only"):
        train(rich_job(), images, DEFENSE, tmp_path)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(images, tmp_path, monkeypatch, whole):
    write, writes = store.write_tensors, []

    def fill(*args):
        writes.append(args)
        if len(writes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(store, "write_tensors", fill)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        train(rich_job(), images, DEFENSE, tmp_path)
    assert resumed(images, tmp_path, whole)[0] == 5


@contextlib.contextmanager
def files_of_at_most(size):
    """The kernel refuses to write more, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_the_system_refuses_is_one_clear_message(images, cut_at_6, whole):
    half = (cut_at_6 / NEWEST).stat().st_size // 2  # more than the other files of a run
    with files_of_at_most(half), pytest.raises(InputError, match=r"File too large.*make room"):
        train(rich_job(), images, DEFENSE, cut_at_6)
    assert resumed(images, cut_at_6, whole) == list(range(5, STEPS + 1))


@pytest.mark.parametrize(("written", "steps"), [("metrics.parquet", 12), ("model.safetensors", 0)])
def test_so_is_any_other_file_of_a_run(written, steps, images, tmp_path, monkeypatch, whole):
    real = store._replace
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(file, write):
        if file.name == written:
            raise full
        real(file, write)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_replace", fill)
        with pytest.raises(InputError, match=r"No space left on device.*make room"):
            train(rich_job(), images, DEFENSE, tmp_path)
    assert len(resumed(images, tmp_path, whole)) == steps


# another number of devices


def test_the_number_of_devices_is_noted_and_another_one_warned_of(images, tmp_path, whole):
    cut_at(1, images, tmp_path)
    assert store.read_job(tmp_path)["devices"] == 1
    store.note(tmp_path, devices=2)  # nothing is saved yet: nothing was computed by two
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut_at(6, images, tmp_path)
    assert store.read_job(tmp_path)["devices"] == 1
    store.note(tmp_path, devices=2)
    with pytest.warns(UserWarning, match="on 2 devices up to step 4 and goes on with 1"):
        resumed(images, tmp_path, whole)
    assert store.read_job(tmp_path)["devices"] == 1
    assert [then["devices"] for then in store.read_job(tmp_path)["earlier"]] == [2]


def test_another_version_and_another_device_are_warned_of_and_noted(images, cut_at_6, whole):
    versions = store.read_job(cut_at_6)["versions"]
    store.note(cut_at_6, versions={**versions, "poise": "0.0.9"}, device="NVIDIA H100")
    with pytest.warns(UserWarning, match="on poise 0.0.9, NVIDIA H100 up to step 4 and goes on with"):
        resumed(images, cut_at_6, whole)
    job = store.read_job(cut_at_6)
    assert job["versions"] == versions and job["device"] == "cpu"
    assert job["earlier"][0]["versions"]["poise"] == "0.0.9"
