"""Run folders read back: whole, or refused in one line that names the file; never half believed."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import polars as pl
import pytest
import torch

import poise
from poise import InputError, attacks, defenses, devices, store
from poise.auditing import audit as auditing
from poise.auditing.audit import audit
from poise.data import ImageSet
from poise.job_file import fault_in
from poise.report import read, report
from poise.training import TrainJob, train

CLASSES = tuple("abcde")
CHOSEN = {name: attacks.build(name, eps=0.1, steps=2) for name in ("pgd", "confsmooth")}
ONE = {"pgd": CHOSEN["pgd"]}


def some(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet("some", pixels, torch.arange(n) % 5, CLASSES, batch_size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "lenet"
    train(
        TrainJob(data="some", model="lenet", defense="vanilla", epochs=1),
        some(),
        defenses.build("vanilla"),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def audited(run, tmp_path_factory):
    return audit(str(run), some(), CHOSEN, tmp_path_factory.mktemp("audit") / "out")


@pytest.fixture
def out(audited, tmp_path):
    return Path(shutil.copytree(audited, tmp_path / "out"))


@pytest.fixture
def trained(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def refused(do, *, names):
    """The one line of a refusal."""
    with pytest.raises(InputError) as refusal:
        do()
    text = str(refusal.value)
    assert names in text and "\n" not in text, text
    return text


# job.json, a field at a time

DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000


def put(text):
    return lambda file: file.write_bytes(text if isinstance(text, bytes) else text.encode())


def field(*path, value):
    """Change a field of job.json, and its key so that it fits."""

    def change(file):
        content = json.loads(file.read_text())
        at = content
        for name in path[:-1]:
            at = at[name]
        if value is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        if isinstance(content.get("job"), dict) and path[0] == "job":
            content["key"] = store.key_of(content["job"])
        file.write_text(json.dumps(content))

    return change


BROKEN_JSON = {
    "empty": put(""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "list": put("[]"),
    "deep": put(DEEP),
    "not UTF-8": lambda file: file.write_bytes(file.read_bytes().replace(b"cpu", b"c\xffu")),
    "NaN": lambda file: file.write_text(file.read_text().replace('"threads": 1', '"threads": NaN')),
    "huge": lambda file: file.write_text(file.read_text().replace('"threads": 1', '"threads": 1e999')),
    "long": lambda file: file.write_text(
        file.read_text().replace('"threads": 1', '"threads": ' + "9" * 9999)
    ),
    "twice": lambda file: file.write_text(file.read_text().replace("{", '{"key": "a",', 1)),
    "zeros": put(b"\0" * 100),
    "UTF-16": lambda file: file.write_bytes(file.read_text().encode("utf-16")),
}
VALUES = (None, [], {}, "x", -1, 1.5, True, 10**400, [[]], KeyError)


@pytest.mark.parametrize("kind", BROKEN_JSON)
def test_a_job_that_is_no_json_of_ours_is_refused_wherever_it_is_read(kind, out, trained, tmp_path):
    for folder in (trained, out, out / "pgd"):
        BROKEN_JSON[kind](folder / "job.json")
    refused(lambda: poise.load(trained), names="run/job.json' is damaged")
    refused(lambda: read(out), names="out/job.json' is damaged")
    refused(lambda: audit(str(trained), some(), ONE, tmp_path / "new"), names="run/job.json")
    job = TrainJob(data="some", model="lenet", defense="vanilla", epochs=1)
    refused(lambda: train(job, some(), defenses.vanilla(), trained), names="run/job.json")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        *(
            (".", f)
            for f in ("versions", "commit", "device", "threads", "started", "findings", "diagnosed")
        ),
        *(
            (".", f"job/{f}")
            for f in ("kind", "data", "images", "classes", "model", "seed", "weights", "defense")
        ),
        *(("pgd", f) for f in ("seconds", "started", "versions", "files", "notes", "devices")),
        *(("pgd", f"job/{f}") for f in ("attack", "of", "kind")),
    ],
)
def test_a_field_of_another_kind_is_read_as_it_was_or_refused(where, name, audited, tmp_path):
    for number, value in enumerate(VALUES):
        out = Path(shutil.copytree(audited, tmp_path / str(number)))
        field(*name.split("/"), value=value)(out / where / "job.json")
        try:
            report([out], tmp_path / "report")
        except InputError as error:
            told = str(error)
        else:
            told = str(out)
        assert str(out) in told and "\n" not in told


@pytest.mark.parametrize(
    "name", ["model", "shape", "classes", "defense", "defense_value", "seed", "epochs", "kind"]
)
def test_so_it_is_with_a_training(name, run, tmp_path):
    texts = ("model", "defense", "defense_value")  # to which "x" is a name as good as another
    for number, value in enumerate(v for v in VALUES if v != "x" or name not in texts):
        folder = Path(shutil.copytree(run, tmp_path / str(number)))
        field("job", name, value=value)(folder / "job.json")
        refused(lambda at=folder: audit(str(at), some(), ONE, tmp_path / "no"), names=str(folder))


def test_a_job_changed_by_hand_is_told_by_its_key(out, trained):
    for folder, change in ((trained, {"classes": [*"bacde"]}), (out, {"seed": 3}), (out, {"images": 7})):
        content = json.loads((folder / "job.json").read_text())
        content["job"] |= change
        (folder / "job.json").write_text(json.dumps(content))
        refused(lambda folder=folder: store.read_job(folder), names="its job was changed")


def test_class_names_that_come_twice_are_no_run(out, trained, tmp_path):
    field("job", "classes", value=list("aabcd"))(trained / "job.json")
    assert "none twice" in refused(lambda: poise.load(trained), names="run/job.json")
    twice = {"kind": "audit", "classes": ["a", "a"], "data": "d", "images": 1, "fingerprint": ""}
    assert "none twice" in fault_in({**twice, "model": "m", "seed": 0, "defense": None, "weights": ""})


# what an attack left


def change_frame(change):
    """Other records, with the digest of what was written: as an older version, or somebody, left them."""

    def do(part):
        file = part / "records.parquet"
        store.write_frame(file, change(pl.read_parquet(file)))
        content = json.loads((part / "job.json").read_text())
        del content["files"]
        (part / "job.json").write_text(json.dumps(content))

    return do


def change_images(change):
    def do(part):
        file = part / "images.safetensors"
        store.write_tensors(file, change(store.read_tensors(file)[0]))
        content = json.loads((part / "job.json").read_text())
        del content["files"]
        (part / "job.json").write_text(json.dumps(content))

    return do


def with_value(name, value):
    return change_frame(
        lambda f: f.with_columns(
            pl.when(pl.int_range(len(f)) == 3).then(value).otherwise(pl.col(name)).alias(name)
        )
    )


def flip(part, name="records.parquet"):
    content = bytearray((part / name).read_bytes())
    content[len(content) // 2] ^= 4
    (part / name).write_bytes(content)


def halved(frame):
    half = pl.col("clean").arr.to_list().list.eval(pl.element() / 2)
    return frame.with_columns(clean=half.list.to_array(5))


def of_another(name):
    return lambda part: shutil.copy(part.parent / "confsmooth" / name, part)


BROKEN_PARTS = {
    "half of the rows": change_frame(lambda f: f.head(10)),
    "rows twice": change_frame(lambda f: pl.concat([f, f])),
    "no rows": change_frame(lambda f: f.head(0)),
    "NaN SSIM": with_value("ssim", float("nan")),
    "infinite distance": with_value("l2", float("inf")),
    "negative distance": with_value("linf", -1.0),
    "SSIM of 3": with_value("ssim", 3.0),
    "a gap": with_value("ssim", None),
    "a label beyond": with_value("y", 5),
    "a label below": with_value("y", -1),
    "no column": change_frame(lambda f: f.drop("attacked")),
    "text": change_frame(lambda f: f.with_columns(pl.col("linf").cast(pl.String))),
    "labels of text": change_frame(lambda f: f.with_columns(pl.col("y").cast(pl.String))),
    "labels of floats": change_frame(lambda f: f.with_columns(pl.col("y").cast(pl.Float64))),
    "one probability": change_frame(lambda f: f.with_columns(pl.col("clean").arr.get(0))),
    "lists": change_frame(lambda f: f.with_columns(pl.col("clean").arr.to_list())),
    "whole numbers": change_frame(lambda f: f.with_columns(pl.col("clean").cast(pl.Array(pl.Int64, 5)))),
    "halved": change_frame(halved),
    "a bit": flip,
    "a bit of the images": lambda part: flip(part, "images.safetensors"),
    "cut": lambda part: os.truncate(part / "records.parquet", 900),
    "empty": lambda part: os.truncate(part / "records.parquet", 0),
    "no images": lambda part: (part / "images.safetensors").unlink(),
    "images of another shape": change_images(lambda t: {**t, "x": t["x"][:, :, :4]}),
    "flat images": change_images(lambda t: {n: v.flatten() for n, v in t.items()}),
    "one kind of images": change_images(lambda t: {"x": t["x"]}),
    "bytes for images": change_images(lambda t: {n: (255 * v).byte() for n, v in t.items()}),
    "pixels outside": change_images(lambda t: {n: v + 1 for n, v in t.items()}),
    "pixels NaN": change_images(lambda t: {n: v / 0 * 0 for n, v in t.items()}),
    "another attack's": of_another("records.parquet"),
    "another attack's images": of_another("images.safetensors"),
    "unfinished": field("seconds", value=KeyError),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_PARTS)
def test_what_no_attack_left_is_neither_reported_nor_resumed(kind, run, out, monkeypatch):
    part = out / "pgd"
    BROKEN_PARTS[kind](part / "job.json" if kind == "unfinished" else part)
    refused(lambda: read(out), names="out/pgd")
    monkeypatch.setattr(
        auditing, "evaluate", lambda *a, **k: pytest.fail("an attack ran before the refusal")
    )
    more = {**CHOSEN, "dropout": attacks.build("dropout", eps=0.1, steps=2)}
    refused(lambda: audit(str(run), some(), more, out), names="out/pgd")


def test_an_attack_of_another_audit_is_refused(run, out, tmp_path):
    other = audit(str(run), some(), ONE, tmp_path / "other", seed=1)
    shutil.rmtree(out / "pgd")
    shutil.copytree(other / "pgd", out / "pgd")
    refused(lambda: read(out), names="out/pgd' belongs to another run")
    refused(
        lambda: audit(str(run), some(), CHOSEN, out), names="out/pgd' holds a run of another configuration"
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_or_a_cut_anywhere_is_refused_or_changes_nothing(seed, audited, tmp_path):
    generator = random.Random(seed)
    out = Path(shutil.copytree(audited, tmp_path / "out"))
    file = generator.choice(sorted(f for f in out.rglob("*") if f.is_file() and f.stat().st_size))
    content = bytearray(file.read_bytes())
    if generator.random() < 0.2:
        del content[generator.randrange(len(content)) :]
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
    try:
        found = read(out)
    except InputError as error:
        told = str(error)
    else:
        told = ""
        same_records(found, read(audited))
    assert not told or str(out) in told


def same_records(found, wanted):
    for part, whole in zip(found.attacked, wanted.attacked, strict=True):
        assert part.attack == whole.attack and part.name == whole.name
        for name, value in whole.records.tensors().items():
            other = getattr(part.records, name)
            assert other is value is None or torch.equal(other, value), name


def test_weights_that_are_not_those_of_the_run_are_refused(trained, tmp_path):
    flip(trained, "model.safetensors")
    for do in (lambda: poise.load(trained), lambda: audit(str(trained), some(), ONE, tmp_path / "a")):
        assert "does not hold what the run wrote" in refused(do, names="run/model.safetensors")


# stops


def test_an_attack_killed_in_its_diagnosis_is_diagnosed_by_the_next_call(run, tmp_path, monkeypatch):
    seen, real = [], auditing.diagnose
    out = tmp_path / "out"

    def diagnose(net, chosen, *args, **options):
        seen.append(sorted(chosen))
        return real(net, chosen, *args, **options)

    monkeypatch.setattr(auditing, "diagnose", diagnose)
    audit(str(run), some(), ONE, out)
    with monkeypatch.context() as patch:
        patch.setattr(auditing, "diagnose", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            audit(str(run), some(), CHOSEN, out)
    audit(str(run), some(), ONE, out)  # its own is done
    assert seen == [["pgd"]]
    audit(str(run), some(), CHOSEN, out)
    assert seen == [["pgd"], ["confsmooth", "pgd"]]
    audit(str(run), some(), CHOSEN, out)
    assert len(seen) == 2 and store.read_job(out)["diagnosed"] == ["confsmooth", "pgd"]


def be_killed(folder):
    """Write a file of a run, and be killed half way."""
    store.open_run(folder, {"a": 1})
    store._replace(
        folder / "x.json", lambda t: (t.write_text("half"), os.kill(os.getpid(), signal.SIGKILL))
    )


def hidden(folder):
    return sorted(f.name for f in folder.iterdir() if f.name.startswith("."))


def test_what_a_killed_writer_left_goes_and_a_live_one_s_stays(tmp_path):
    folder = tmp_path / "run"
    child = multiprocessing.get_context("fork").Process(target=be_killed, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(hidden(folder)) == 1
    (folder / ".gitignore").write_text("*")
    (folder / ".notes-of-mine.txt").write_text("mine")

    def while_open(temporary):
        temporary.write_text("{}")
        assert temporary.name in hidden(store.open_run(folder, {"a": 1}))

    store._replace(folder / "y.json", while_open)
    assert hidden(folder) == [".gitignore", ".notes-of-mine.txt"]
    assert (folder / "y.json").read_text() == "{}"


def test_a_writer_killed_before_there_was_a_run_is_swept_up_too(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".job-abcd1234.json").write_text("half")
    store.open_run(folder, {"a": 1})
    assert [f.name for f in folder.iterdir()] == ["job.json"]


def test_what_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    folder = store.open_run(tmp_path / "run", {"a": 1})

    def read_only(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store, "_replace", read_only)
    for do in (
        lambda: store.note(folder, seconds=1.0),
        lambda: store.leave(folder, {"a.parquet": b""}),
        lambda: store.open_run(tmp_path / "other", {"a": 1}),
    ):
        refused(do, names="Read-only file system")
    assert store.read_job(folder).get("seconds") is None


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    refused(lambda: store.read_job(tmp_path / ("x" * 300)), names="cannot be read: File name too long")
    refused(lambda: store.open_run(tmp_path / ("x" * 300), {"a": 1}), names="written: File name too long")


# versions and devices


def test_attacks_of_two_versions_are_told_of(run, out, tmp_path):
    assert "versions" not in {f["kind"] for f in read(out).content["findings"]}
    field("versions", "poise", value="0.0.9")(out / "pgd" / "job.json")
    (found,) = (f for f in read(out).content["findings"] if f["kind"] == "versions")
    assert "pgd was run by poise 0.0.9" in found["seen"] and f"poise {poise.__version__}" in found["seen"]
    assert "0.0.9" in report([out], tmp_path / "report").read_text()


def test_an_attack_notes_the_versions_that_ran_it(run, out):
    """Not those that made its folder, before a stop."""
    for name in ("records.parquet", "images.safetensors"):
        (out / "pgd" / name).unlink()
    field("versions", "poise", value="0.0.9")(out / "pgd" / "job.json")
    audit(str(run), some(), CHOSEN, out)
    assert "versions" not in {f["kind"] for f in read(out).content["findings"]}


def test_the_device_noted_is_the_one_in_use(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    assert store.circumstances()["device"] == store.circumstances(torch.device("cpu"))["device"] == "cpu"
    assert store.circumstances(torch.device("cuda:1"))["device"] == "GPU cuda:1"
    fabric = devices.sharing(accelerator="cpu")
    out = audit(str(run), some(), ONE, tmp_path / "out", probe=0, fabric=fabric)
    assert [store.read_job(f)["device"] for f in (out, out / "pgd")] == ["cpu", "cpu"]
    assert store.read_job(run)["device"] == "cpu"


def test_a_finished_run_comes_back_on_the_device_of_a_fresh_one(run):
    class There:
        """A Fabric that sends modules to the meta device."""

        device, is_global_zero, world_size = torch.device("meta"), True, 1
        strategy = type("S", (), {"precision": type("P", (), {"precision": "32-true"})})
        launch = staticmethod(lambda: None)
        to_device = staticmethod(lambda net: net.to("meta"))

    job = TrainJob(data="some", model="lenet", defense="vanilla", epochs=1)
    net = train(job, some(), defenses.vanilla(), run, fabric=There())
    assert {p.device.type for p in net.parameters()} == {"meta"}


# commits


def git(folder, *args):
    settings = ["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *args], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A project that poise lies in, at a place where poise's own checkout would have it too."""
    package = tmp_path / "project" / "src" / "poise"
    package.mkdir(parents=True)
    monkeypatch.setattr(store, "__file__", str(package / "store.py"))
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    trap.chmod(0o755)
    git(tmp_path / "project", "init")
    (tmp_path / "project" / "file").write_text("1")
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "commit", "-m", "one")
    git(tmp_path / "project", "config", "core.fsmonitor", str(trap))
    return tmp_path / "project"


def test_a_project_around_poise_is_not_asked_for_a_commit(installed):
    assert store.circumstances()["commit"] is None
    (installed / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert store.circumstances()["commit"] is None
    assert not (installed.parent / "ran").exists()


def test_poise_s_own_checkout_is_asked_without_its_settings_being_run(installed, monkeypatch):
    (installed / "pyproject.toml").write_text('[project]\nname = "poise"\n')
    commit = git(installed, "-c", "core.fsmonitor=false", "rev-parse", "HEAD")
    (installed.parent / "ran").unlink(missing_ok=True)
    monkeypatch.setenv("GIT_DIR", str(installed.parent))  # as within another project's hook
    told = store.circumstances()["commit"]
    assert told.rstrip("+") and commit.startswith(told.rstrip("+"))
    assert not (installed.parent / "ran").exists()


# names and devices that are asked for


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", 3])
def test_an_attack_s_name_is_a_folder_s(name, run, tmp_path):
    refused(lambda: audit(str(run), some(), {name: CHOSEN["pgd"]}, tmp_path / "out"), names="attack's name")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ({}, 0, "cpu"),
        ({"devices": None}, 0, "cpu"),
        ({}, 1, "cuda"),
        ({"accelerator": "cpu"}, 3, "cpu"),
        ({"devices": 2, "accelerator": "cpu"}, 3, "cpu"),
        ({"accelerator": "cuda"}, 0, "none is in sight"),
        ({"accelerator": "tpu"}, 1, "one of auto, cpu, cuda"),
        ({"devices": 4}, 3, "there are 3 GPUs: take --devices 3"),
        ({"devices": 0}, 1, "at least 1"),
        ({"devices": True}, 1, "whole number"),
    ],
)
def test_devices_are_those_asked_for(asked, gpus, expected, monkeypatch):
    found = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(devices, "Fabric", lambda **given: found.append(given))
    if expected not in ("cpu", "cuda"):
        refused(lambda: devices.sharing(**asked), names=expected)
        return
    devices.sharing(**asked)
    assert found[0]["accelerator"] == expected and found[0]["devices"] == (asked.get("devices") or 1)
    assert (found[0]["strategy"] == "auto") == (found[0]["devices"] == 1)


def test_all_gpus_in_sight_are_taken_where_no_number_is_given(monkeypatch):
    found = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(devices, "Fabric", lambda **given: found.append(given["devices"]))
    devices.sharing(devices=None), devices.sharing()
    assert found == [3, 1]
