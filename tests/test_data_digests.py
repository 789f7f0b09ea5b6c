"""Digests of image files that are kept between runs: never believed of a file that may have changed."""

import os
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from poise import InputError, data
from poise.data import Preparation, digests


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED", -1)
    return tmp_path / "cache" / "poise" / "digests.sqlite3"


@pytest.fixture
def read(monkeypatch):
    """The files that were read for their digests."""
    names, whole = [], digests.hashlib.file_digest

    def counted(stream, kind):
        names.append(Path(stream.name).name)
        return whole(stream, kind)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    return names


@pytest.fixture
def top(tmp_path):
    for grey, name in enumerate("ab"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (4, 4), grey).save(tmp_path / "set" / name / f"{name}.png")
    return tmp_path / "set"


def mark(top, **options):
    return data.load(top, preparation=Preparation(**options)).fingerprint()


def test_files_are_read_once_and_again_on_request(top, cache, read):
    first = mark(top)
    assert sorted(read) == ["a.png", "b.png"] and mark(top) == first and len(read) == 2
    assert mark(top, verify=True) == first and len(read) == 4


def test_a_file_that_changed_is_read_again(top, cache, read):
    first = mark(top)
    file = top / "a" / "a.png"
    before = file.stat()
    Image.new("L", (4, 4), 9).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # its time of change still tells
    assert mark(top) != first and read[2:] == ["a.png"]


def test_a_file_of_just_now_is_not_remembered(top, cache, read, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 10**18)
    assert mark(top) == mark(top) and len(read) == 4


@pytest.mark.parametrize("damage", [b"", b"no database", None, "half", "row"])
def test_a_damaged_cache_costs_time_alone(damage, top, cache, read):
    first = mark(top)
    if damage == "row":
        with sqlite3.connect(cache) as there:
            there.execute("UPDATE digests SET digest = zeroblob(32)")
        there.close()
    elif damage is None:
        cache.unlink()
        cache.mkdir()
    else:
        content = cache.read_bytes()
        cache.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    assert mark(top) == first and len(read) == 4
    assert mark(top) == first and len(read) == (6 if damage is None else 4)


@pytest.mark.parametrize("home", ["file", "relative", ""])
def test_a_cache_that_cannot_be_written(home, top, cache, read, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if home == "file" else home)
    monkeypatch.chdir(tmp_path)
    assert mark(top) == mark(top) and len(read) == 4
    assert not (tmp_path / "relative").exists()


def test_the_flag_is_no_part_of_what_is_asked(top, cache):
    loaded = [data.load(top, preparation=Preparation(verify=verify)) for verify in (False, True)]
    assert loaded[0].asked == loaded[1].asked


def test_a_file_that_is_gone_is_named(top, cache):
    images = data.load(top)
    (top / "a" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png' cannot be read"):
        images.fingerprint()
