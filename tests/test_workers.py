"""`poise reproduce --workers`: several processes share the nets, and end with the one that began them."""

import sys
import time
from dataclasses import replace

import pytest

from poise.cli import main
from poise.paper import jobs, workers
from poise.paper.nets import Place
from poise.paper.readings import OURS
from poise.paper.suites import TINY


def test_commands_run_at_once(tmp_path):
    """Each waits for a file that the other writes: one after the other they would wait for ever."""
    wait = "import pathlib, sys, time; a, b = map(pathlib.Path, sys.argv[1:]); a.touch()\n"
    wait += "while not b.exists(): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    looks = []
    commands = [[sys.executable, "-c", wait, *pair] for pair in ((a, b), (b, a))]
    workers.wait_for(commands, on_look=lambda: looks.append(1), every=0.01)
    assert looks


def test_what_stops_the_first_process_stops_all(tmp_path):
    late = tmp_path / "late"
    text = f"import pathlib, time; time.sleep(2); pathlib.Path({str(late)!r}).touch()"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.wait_for([[sys.executable, "-c", text]], on_look=stop)
    time.sleep(2.2)
    assert not late.exists()


def test_small_nets_get_a_process_a_core_and_large_ones_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(workers.torch.cuda, "is_available", lambda: False)
    place = Place(tmp_path, tmp_path)
    todo = jobs.distinct(jobs.table3(TINY, OURS))
    assert workers.workers_for(todo, place) == 4
    assert workers.workers_for(todo, place, threads=2) == 2
    one = [job for job in todo if job.net.name == todo[0].net.name]
    assert workers.workers_for(one, place) == 1
    wide = [
        replace(job, net=replace(job.net, setting=replace(job.net.setting, job=large)))
        for job in todo
        for large in [replace(job.net.setting.job, model="resnet18", batch_size=512)]
    ]
    assert workers.workers_for(wide, place) < 4


def test_shares_are_those_that_jobs_names(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(workers, "wait_for", lambda commands, on_look: found.extend(commands))
    monkeypatch.setattr(jobs, "run", lambda todo, place, progress: [])
    words = ["reproduce", "figureS2", "--scale", "tiny", "--seeds", "1", "--workers", "2"]
    with pytest.raises(SystemExit):  # nothing was run, so the figure has no nets
        main([*words, "--out", str(tmp_path / "runs")])
    assert [words[-2:] for words in found] == [["--jobs", "0/2"], ["--jobs", "1/2"]]
    assert found[0][3:-2] == found[1][3:-2]
    assert f"--out={tmp_path / 'runs'}" in found[0] and "--seeds=1" in found[0]


def test_workers_and_jobs_exclude_each_other(tmp_path, capsys):
    flags = ["--workers", "2", "--jobs", "0/2", "--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit):
        main(["reproduce", "table2", "--scale", "tiny", *flags])
    assert "not both" in capsys.readouterr().err
