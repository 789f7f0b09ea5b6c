"""Damaged and hostile files by the hundred: every one is refused in a line, or read right."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Timer

import pytest

from fuzz_files import CASES, KINDS, SECONDS


def worker(begin):
    """A process that runs the cases from `begin` on."""
    script = Path(__file__).with_name("fuzz_files.py")
    return subprocess.Popen(
        [sys.executable, str(script), "0", "1", str(begin)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture(scope="module")
def verdicts():
    """The verdict on every case; a process that hangs or dies is followed by another."""
    found, begin, timer = {}, 0, None
    while begin < len(CASES):
        process, running = worker(begin), None
        for line in process.stdout:
            said = json.loads(line)
            running = said["case"] if "verdict" not in said else running
            if "verdict" in said:
                timer.cancel()
                found[running] = said["verdict"]
                running = None
            else:
                timer = Timer(
                    6 * SECONDS, process.kill
                )  # it waits for something: its own alarm counts work
                timer.start()
        if process.wait() == 0:
            break
        if running is None:
            raise AssertionError("the worker died between two cases")
        timer.cancel()
        found[running] = "fault: the process hung or died"
        begin = running + 1
    return {CASES[index]: verdict for index, verdict in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_in_a_line_or_read_right(kind, verdicts):
    mine = {number: verdict for (of, number), verdict in verdicts.items() if of is kind}
    assert len(mine) == KINDS[kind]
    faults = [f"{kind.__name__} {n}: {v}" for n, v in mine.items() if v.startswith("fault")]
    assert not faults, "\n".join(faults)
    counts = Counter(verdict.partition(":")[0] for verdict in mine.values())
    assert counts["refused"] > len(mine) / 10 and counts["right"] > 0, counts
