"""Several processes that share the nets of a table: small nets gain nothing from threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from poise import models
from poise.checks import InputError
from poise.paper.looks import Job
from poise.paper.nets import Place
from poise.progress import Progress
from poise.resources import suit_threads


def workers_for(jobs: Sequence[Job], place: Place, *, threads: int | None = None) -> int:
    """How many processes suit what is to do: the cores over the threads of the largest net.

    One where a GPU does the work, and never more than there are nets.

    Args:
        jobs: all of them, finished or not.
        place: where runs and data lie.
        threads: of each process; by default what suits the largest net.
    """
    todo = [job for job in jobs if not job.finished(place)]
    nets = {job.net.name: job.net for job in todo}
    if torch.cuda.is_available() or len(nets) < 2:
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if threads is None:
        threads = 1
        for setting in {repr(net.setting): net for net in nets.values()}.values():
            with suppress(InputError):  # its data or weights are not there: the run says so
                test, job = setting.images("test", place), setting.setting.job
                net = models.load(job.model, classes=len(test.classes), shape=test.shape)
                x = torch.zeros(2, *test.shape)
                threads = max(threads, suit_threads(net, x, images=max(job.batch_size, test.batch_size)))
    return max(1, min(cores // threads, len(nets)))


def run_shares(
    words: Sequence[str], jobs: Sequence[Job], place: Place, *, workers: int, progress: Progress
) -> None:
    """Have so many processes of `poise reproduce` share the jobs out, quietly, and wait for all of them.

    How they end is not asked: `jobs.run` does what is left, and says why it cannot. Whatever ends this
    call ends them too, as SIGTERM does, so that each can be gone on with.

    Args:
        words: the target and the flags that say which jobs, and where.
        jobs: all of them.
        place: where runs and data lie.
        workers: how many.
        progress: told every second how many jobs are finished.
    """
    command = [sys.executable, "-m", "poise", "reproduce", *words]
    wait_for(
        [[*command, "--jobs", f"{i}/{workers}"] for i in range(workers)],
        on_look=lambda: progress("jobs", sum(job.finished(place) for job in jobs), len(jobs)),
    )


def wait_for(
    commands: Sequence[Sequence[str]], *, on_look: Callable[[], object], every: float = 1.0
) -> None:
    """Run the commands at once and wait for all; end them all with this call."""
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in commands]
    try:
        while any(process.poll() is None for process in running):
            on_look()
            time.sleep(every)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
