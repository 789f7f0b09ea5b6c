"""The run store: whole files or none, one configuration a folder, nothing that runs when read."""

import json
import os
import resource
import struct
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from poise import InputError, data, defenses, store
from poise.records import Records
from poise.training import TrainJob, train

JOB = {"model": "lenet", "seed": 0, "shape": (1, 8, 8)}


def files(folder):
    """Every file below the folder, hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


# writing

WRITERS = {
    "job.json": lambda file, value: store.write_json(file, {"value": value}),
    "report.html": lambda file, value: store.write_text(file, f"value {value}"),
    "rows.parquet": lambda file, value: store.write_frame(file, pl.DataFrame({"value": [value]})),
    "net.safetensors": lambda file, value: store.write_tensors(file, {"value": torch.tensor(value)}),
}


def full_disk(*args, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", WRITERS)
def test_writes_replace_what_was_there_and_leave_nothing_else(name, tmp_path):
    file = tmp_path / name
    WRITERS[name](file, 1)
    first = file.read_bytes()
    WRITERS[name](file, 2)
    second = file.read_bytes()
    WRITERS[name](file, 1)
    assert second != first == file.read_bytes()
    assert files(tmp_path) == [file]
    assert file.stat().st_mode & 0o777 == 0o644  # others may read it


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_at_its_end_leaves_the_old_content(name, tmp_path, monkeypatch):
    file = tmp_path / name
    WRITERS[name](file, 1)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](file, 2)
    assert file.read_bytes() == before
    assert files(tmp_path) == [file]


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_system_does_not_let_be_written_is_an_os_error(name, tmp_path):
    """A limit on the size of files is met in the same place as the end of a disk."""
    file = tmp_path / name
    WRITERS[name](file, 1)
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            WRITERS[name](file, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert files(tmp_path) == [file]


def test_a_write_that_fails_half_way_leaves_the_old_content(tmp_path):
    file = tmp_path / "report.html"
    store.write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):  # raised when the file is open and emptied
        store.write_text(file, "new \ud800")
    assert file.read_text() == "old"
    assert files(tmp_path) == [file]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.write_json(tmp_path / "job.json", {})
    assert files(tmp_path) == []


# the job's folder


def test_opening_makes_the_folder_and_opening_again_finds_it(tmp_path):
    folder = tmp_path / "deep" / "run"
    assert store.open_run(folder, JOB) == folder
    before = files(folder), store.read_job(folder)
    assert store.open_run(folder, JOB) == folder
    assert (files(folder), store.read_job(folder)) == before
    assert before[1]["job"] == {"model": "lenet", "seed": 0, "shape": [1, 8, 8]}


def test_job_json_says_what_a_number_may_depend_on(tmp_path):
    content = store.read_job(store.open_run(tmp_path / "run", JOB))
    assert content["key"] == store.key_of(JOB)
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "poise", "torchvision"} <= content["versions"].keys()
    assert content["threads"] == torch.get_num_threads()
    assert {"commit", "device", "started"} <= content.keys()


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert store.read_job(store.open_run(tmp_path / "run", JOB))["job"]["model"] == "lenet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"eps": 0.1}, "eps: None there, 0.1 now"),
        ({"shape": (1, 8, 9)}, r"shape: \[1, 8, 8\] there, \[1, 8, 9\] now"),
    ],
)
def test_another_configuration_is_refused_by_the_field_that_differs(change, message, tmp_path):
    folder = store.open_run(tmp_path / "run", JOB)
    before = store.read_job(folder)
    with pytest.raises(InputError, match=message) as refusal:
        store.open_run(folder, {**JOB, **change})
    assert str(folder) in str(refusal.value) and "model" not in str(refusal.value)
    assert store.read_job(folder) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no run folder"):
        store.open_run(tmp_path, JOB)
    assert [path.name for path in files(tmp_path)] == ["thesis.tex"]


def test_a_file_in_place_of_a_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").write_text("a note")
    with pytest.raises(InputError, match="no run folder"):
        store.open_run(tmp_path / "run", JOB)
    assert (tmp_path / "run").read_text() == "a note"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")  # below a file nobody can make a folder, not even root
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        store.open_run(tmp_path / "file" / "run", JOB)


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        store.open_run(tmp_path / "run", JOB)


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"job": {}', "[]", "3", '{"key": "a"}', '{"key": "a", "job": null}', "\x00\x00"],
)
def test_a_damaged_job_is_refused(content, tmp_path):
    (tmp_path / "job.json").write_text(content)
    for read in (store.read_job, lambda folder: store.open_run(folder, JOB)):
        with pytest.raises(InputError, match="damaged"):
            read(tmp_path)


def test_reading_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no job\.json"):
        store.read_job(tmp_path / "nothing")


def test_notes_are_added_beside_the_configuration(tmp_path):
    folder = store.open_run(tmp_path / "run", JOB)
    before = store.read_job(folder)
    store.note(folder, seconds=3.5)
    assert store.read_job(folder) == {**before, "seconds": 3.5}
    store.open_run(folder, JOB)  # still the same run


# keys


def test_key_is_the_sha256_of_the_json():
    # printf '{"a":1,"b":[2,"c"]}' | sha256sum
    assert store.key_of({"b": [2, "c"], "a": 1}) == "d765e5ded987639d"


def test_key_does_not_tell_a_tuple_from_a_list_but_tells_values_apart():
    # JSON has one kind of list, and a job read back must have the key that it was written under
    assert store.key_of({"a": (1, 2)}) == store.key_of({"a": [1, 2]})
    keys = {store.key_of({"a": value}) for value in (1, 2, 1.5, "1", None, True, [1])}
    assert len(keys) == 7


# tensors


def test_tensors_and_facts_survive_the_file(tmp_path):
    file = tmp_path / "net.safetensors"
    tensors = {
        "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).t(),  # not contiguous
        "count": torch.tensor(7),
        "double": torch.tensor([1e-300, -0.0], dtype=torch.float64),
    }
    store.write_tensors(file, tensors, {"epoch": "3"})
    again, facts = store.read_tensors(file)
    assert facts == {"epoch": "3"} and again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)


@pytest.mark.parametrize("damage", ["empty", "truncated", "header", "missing"])
def test_damaged_tensors_are_refused(damage, tmp_path):
    file = tmp_path / "net.safetensors"
    store.write_tensors(file, {"w": torch.ones(100)})
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        content = {"empty": b"", "truncated": whole[:-7], "header": b"\xff" * 20 + whole[20:]}
        file.write_bytes(content[damage])
    with pytest.raises(InputError, match=r"net\.safetensors"):
        store.read_tensors(file)


# no pickles


def read_as_promised(file: Path):
    """Read a file in the format of its name, by a reader that cannot run code."""
    if file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".parquet":
        assert not any(dtype == pl.Object for dtype in pl.read_parquet(file).dtypes)
    elif file.suffix == ".safetensors":
        load_file(file)
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        json.loads(content[8 : 8 + length])
    else:
        pytest.fail(f"{file.name} has a format that no reader here knows")


def test_no_file_of_a_run_holds_a_pickle(tmp_path):
    images = data.load("digits", split="train", images=64)
    job = TrainJob(data="digits", model="lenet", defense="vanilla", epochs=2, batch_size=32)
    seen = set()

    def look(*args):
        for file in files(tmp_path):
            seen.add(file.name)
            read_as_promised(file)
            assert b"data.pkl" not in file.read_bytes()  # the heart of a torch.save

    train(job, images, defenses.build("vanilla"), tmp_path / "run", progress=look)
    look()
    tensors = {f"{name}.safetensors" for name in ("checkpoint", "model", "seen")}  # seen: digests of images
    assert seen == {"job.json", "metrics.parquet", *tensors}


# records

STRANGE = [0.0, -0.0, 1e-45, 1.0, float("nan"), float("inf"), 1 / 3]


def records(seed, n=7, classes=3):
    """Records of random numbers, with values that a careless format would change."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    return Records(
        y=torch.randint(classes, (n,), generator=generator),
        clean=rand(n, classes).softmax(dim=1),
        attacked=rand(n, classes).softmax(dim=1),
        linf=torch.tensor(STRANGE)[torch.randint(len(STRANGE), (n,), generator=generator)],
        l2=torch.tensor(STRANGE)[:n],
        wasserstein=rand(n),
        ssim=2 * rand(n) - 1,
        x=rand(2, 1, 4, 4),
        x_adv=rand(2, 1, 4, 4),
    )


def same_bits(one, other):
    """Whether two tensors agree in type, shape and every bit, NaN and the sign of 0 included."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.numpy().tobytes() == other.numpy().tobytes()
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 10])
def test_records_survive_parquet_bit_for_bit(seed, classes, tmp_path):
    before = records(seed, classes=classes)
    store.write_frame(tmp_path / "records.parquet", before.frame())
    after = Records.from_frame(pl.read_parquet(tmp_path / "records.parquet"), before.x, before.x_adv)
    for name, value in before.tensors().items():
        assert same_bits(getattr(after, name), value), name


def test_frame_says_what_the_records_say():
    it = records(0)
    frame = it.frame()
    assert len(frame) == len(it) == 7
    assert frame["prediction"].to_list() == it.clean.argmax(dim=1).tolist()
    assert frame["prediction_attacked"].to_list() == it.attacked.argmax(dim=1).tolist()
    assert frame["confidence"].to_list() == it.clean.amax(dim=1).tolist()
    assert frame["confidence_attacked"].to_list() == it.attacked.amax(dim=1).tolist()
    assert (frame["prediction"] == frame["y"]).to_list() == it.correct.tolist()
    assert (frame["prediction"] == frame["prediction_attacked"]).to_list() == it.kept.tolist()


def test_joined_records_are_their_parts_in_order():
    parts = [records(seed, n) for seed, n in ((0, 7), (1, 3), (2, 1))]
    whole = Records.join(parts)
    assert len(whole) == 11
    for name, value in whole.tensors().items():
        assert same_bits(value, torch.cat([getattr(part, name) for part in parts])), name
    assert Records.join([whole]).frame().equals(pl.concat(part.frame() for part in parts))
