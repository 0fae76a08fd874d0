"""Runs trials one after another in this process, or several at a time in worker processes that each take one trial after another."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable

import torch

from ..training import Interrupted
from .trials import Trial, drop_weights, execute

Tell = Callable[[Trial, int, int, bool], None]
_POLL = 0.5  # seconds between looks for workers that died
# What a worker answers: a run has ended, well or not; it needed more memory than there was.
ENDED, CROWDED = b".", b"m"


class _Worker:
    """A process that runs the trials it is given; each reply is one byte, `ENDED` or `CROWDED`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.trial: Trial | None = None
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "goat_peft.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )

    def give(self, trial: Trial) -> None:
        """Start a trial; a process that has ended is started again."""
        if self.process.poll() is not None:
            self.close()
            self.process = self._start()
        self.trial = trial
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(trial.recipe.model_dump(mode="json")).encode() + b"\n")
        self.process.stdin.flush()

    def take(self) -> tuple[Trial, bool] | None:
        """The trial that has ended, well or not, and whether it had too little memory or its process died; None while it runs.

        Raises `Interrupted` when the user stopped it.
        """
        assert self.process.stdout is not None and self.trial is not None
        replied = select.select([self.process.stdout], [], [], 0)[0] and self.process.stdout.read(1)
        if not replied and self.process.poll() is None:
            return None
        if self.process.poll() == 130:
            raise Interrupted("a run was stopped")
        trial, self.trial = self.trial, None
        return trial, replied != ENDED

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def run_all(trials: list[Trial], parallel: int, tell: Tell) -> None:
    """Run the trials that are not finished; `tell` hears of each with (trial, done, total, again) once it has ended.

    With workers that share a device, those that found no memory, or whose process died, are run once more when all others are through: one at a
    time on each device. Then `again` is true the first time, and they do not count as done.
    """
    pending = []
    for trial in trials:
        if trial.known is not None:
            continue
        if trial.finished():
            drop_weights(trial.path)  # it may have been stopped between its end and this
        else:
            pending.append(trial)
    done = len(trials) - len(pending)

    def ended(trial: Trial, again: bool) -> None:
        nonlocal done
        done += not again
        tell(trial, done, len(trials), again)

    if parallel == 1:
        for trial in pending:
            execute(trial.recipe)
            ended(trial, again=False)
        return
    alone = max(1, len(_devices()))
    crowded = _share(pending, parallel, ended, again=min(parallel, len(pending)) > alone)
    _share(crowded, alone, ended, again=False)


def _share(pending: list[Trial], parallel: int, ended: Callable[[Trial, bool], None], again: bool) -> list[Trial]:
    """Let so many workers run the trials; `ended` hears of each. With `again`, those that had no room are told so, and returned."""
    crowded: list[Trial] = []
    waiting = list(pending)
    workers = [_Worker(environment) for environment in _environments(min(parallel, len(pending)))]
    try:
        while waiting or any(worker.trial is not None for worker in workers):
            for worker in workers:
                if waiting and worker.trial is None:
                    worker.give(waiting.pop(0))
            busy = [worker for worker in workers if worker.trial is not None]
            select.select([worker.process.stdout for worker in busy], [], [], _POLL)  # type: ignore[type-var]
            for trial, had_no_room in filter(None, (worker.take() for worker in busy)):
                once_more = again and had_no_room and not trial.finished()
                ended(trial, once_more)
                if once_more:
                    crowded.append(trial)
    finally:
        for worker in workers:
            worker.close()
    return crowded


def _environments(workers: int) -> list[dict[str, str]]:
    """One environment per worker: processors shared out evenly, accelerators in turn."""
    threads = str(max(1, (os.cpu_count() or 1) // max(1, workers)))
    # Each process would else start a thread for every processor.
    shared = {"OMP_NUM_THREADS": threads} | os.environ
    devices = _devices()
    if len(devices) < 2:
        return [dict(shared) for _ in range(workers)]
    return [shared | {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} for index in range(workers)]


def _devices() -> list[str]:
    """CUDA devices that this process may use, by the names that `CUDA_VISIBLE_DEVICES` takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]
