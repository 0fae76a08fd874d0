"""Runs trials one after another in this process, or several at a time in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..recipes import to_yaml
from ..training import Interrupted
from .trials import Trial, execute

Tell = Callable[[Trial, int, int], None]
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class _Job:
    trial: Trial
    process: subprocess.Popen[str]


def run_all(trials: list[Trial], parallel: int, tell: Tell) -> None:
    """Run the trials that are not finished; `tell` hears of each with (trial, done, total) once it has ended."""
    pending = [trial for trial in trials if not trial.finished()]
    done = len(trials) - len(pending)
    if parallel == 1:
        for trial in pending:
            execute(trial.recipe)
            done += 1
            tell(trial, done, len(trials))
        return
    jobs: list[_Job] = []
    try:
        while pending or jobs:
            while pending and len(jobs) < parallel:
                jobs.append(_start(pending.pop(0), parallel))
            time.sleep(_POLL)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                if job.process.returncode == 130:
                    raise Interrupted("a run was stopped")
                done += 1
                tell(job.trial, done, len(trials))
    finally:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.process.wait()


def _start(trial: Trial, parallel: int) -> _Job:
    """Start one process; processors are shared out evenly, else each process would start a thread for all of them."""
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    process = subprocess.Popen(
        [sys.executable, "-m", "goat_peft.compare.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"OMP_NUM_THREADS": threads} | os.environ,
    )
    assert process.stdin is not None
    process.stdin.write(to_yaml(trial.recipe))
    process.stdin.close()
    return _Job(trial, process)
