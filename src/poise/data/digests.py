"""Digests of files, kept between runs: a large data set is not read whole at every start."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock

WRITING = Lock()  # so that a damaged cache is replaced by one thread, not by each
SETTLED = 2_000_000_000  # ns; a file touched since may change again within the clock's resolution
TABLE = "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, state TEXT, digest BLOB, mark BLOB)"


def digest_of(file: Path, *, verify: bool = False) -> bytes:
    """The SHA-256 of a file, or what it was when the file had this size and these times.

    What is known lies in poise/digests.sqlite3 under XDG_CACHE_HOME, or ~/.cache. Where that is damaged
    or cannot be written, files are read.

    Args:
        file: a file.
        verify: read it whatever is known.
    """
    info = file.stat()
    state = f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
    key = os.fsencode(file.absolute())
    if not verify and (known := _look_up(key, state)) is not None:
        return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    after = file.stat()
    same = state == f"{after.st_size} {after.st_mtime_ns} {after.st_ctime_ns}"
    if same and time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) > SETTLED:
        _remember(key, state, digest)
    return digest


def _store() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    top = Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
    return top / "poise" / "digests.sqlite3"


def _look_up(key: bytes, state: str) -> bytes | None:
    try:
        store = _store()
        if not store.is_file():
            return None
        with closing(sqlite3.connect(store, timeout=1)) as there:
            found = there.execute(
                "SELECT state, digest, mark FROM digests WHERE path = ?", (key,)
            ).fetchone()
    except (OSError, RuntimeError, sqlite3.Error):
        return None
    whole = found is not None and found[0] == state and found[2] == _mark(key, state, found[1])
    return found[1] if whole else None


def _remember(key: bytes, state: str, digest: bytes) -> None:
    row = (key, state, digest, _mark(key, state, digest))
    with WRITING, suppress(OSError, RuntimeError, sqlite3.Error):
        store = _store()
        store.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(store, row)
        except sqlite3.OperationalError:  # locked or full: nothing is wrong with it
            return
        except sqlite3.DatabaseError:
            store.unlink()  # damaged
            _write(store, row)


def _write(store: Path, row: tuple[bytes, str, bytes, bytes]) -> None:
    with closing(sqlite3.connect(store, timeout=1)) as there, there:
        there.execute("PRAGMA synchronous = OFF")  # after a power cut it may be damaged, which is noticed
        there.execute(TABLE)
        there.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", row)


def _mark(key: bytes, state: str, digest: object) -> bytes:
    """What tells a row whose bytes were turned by a failing disk."""
    return hashlib.sha256(repr((key, state, digest)).encode()).digest()[:8]
