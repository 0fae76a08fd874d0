"""Runs that are killed with signal 9 at a chosen or a drawn moment, each in a process of its own."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer

from goat_peft import records
from goat_peft.errors import UserError
from goat_peft.recipes import Recipe
from goat_peft.tasks.text_classification import TextClassification
from goat_peft.training import checkpoints, folder, train

PHASES = ("training", "saving", "evaluating")
FORK = multiprocessing.get_context("fork")
DEADLINE = 240.0  # seconds until a run that does not end is a failure


@dataclass(frozen=True)
class Moment:
    """When to kill: in the `nth` part of a phase, from 1, `delay` seconds after it began."""

    phase: str
    nth: int
    delay: float


class Watch:
    """What a run in another process is doing, in memory that both share."""

    def __init__(self) -> None:
        self.phase = FORK.Value(ctypes.c_int, -1)
        self.counts = [FORK.Value(ctypes.c_int, 0) for _ in PHASES]
        self.seconds = [FORK.Value(ctypes.c_double, 0.0) for _ in PHASES]

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Say that the run is in a phase."""
        number, outer, began = PHASES.index(phase), self.phase.value, time.monotonic()
        self.phase.value = number
        self.counts[number].value += 1
        try:
            yield
        finally:
            self.seconds[number].value += time.monotonic() - began
            self.phase.value = outer

    def wrap(self, owner: type, name: str, phase: str) -> None:
        """Make a method of a class say its phase; for good, in this process."""
        inner = getattr(owner, name)

        def told(*args: Any, **settings: Any) -> Any:
            with self.inside(phase):
                return inner(*args, **settings)

        setattr(owner, name, told)

    def install(self) -> None:
        """Watch the runs of this process."""
        self.wrap(Trainer, "training_step", "training")
        self.wrap(Trainer, "_save_checkpoint", "saving")
        self.wrap(checkpoints.WholeCheckpoints, "on_save", "saving")
        self.wrap(TextClassification, "evaluate", "evaluating")
        saving = folder.RunFolder.saving

        @contextmanager
        def told(*args: Any) -> Iterator[Path]:
            with self.inside("saving"), saving(*args) as place:
                yield place

        folder.RunFolder.saving = told


def in_process(work: Callable[[], Any]) -> tuple[Any, Any]:
    """Start `work` in a process of its own; return the process and the end of a pipe that its error text comes out of."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_reporting, args=(work, send))
    process.start()
    send.close()
    return process, receive


def _reporting(work: Callable[[], Any], send: Any) -> None:
    try:
        work()
    except UserError as error:
        send.send(str(error))
        os._exit(2)
    os._exit(0)


def finish(work: Callable[[], Any]) -> str:
    """Run `work` to its end in a process of its own; return the text of its `UserError`, or nothing."""
    process, receive = in_process(work)
    process.join(DEADLINE)
    assert process.exitcode in (0, 2), process.exitcode
    return str(receive.recv()) if process.exitcode == 2 else ""


def killed(work: Callable[[], Any]) -> None:
    """Run `work`, which has to kill itself, in a process of its own."""
    process, _ = in_process(work)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def kill_at(recipe: Recipe, moment: Moment) -> str | None:
    """Train, kill at the moment, and return the phase in which it was hit; None if the run ended before."""
    watch = Watch()
    process, _ = in_process(lambda: (watch.install(), train(recipe)))
    count, deadline = watch.counts[PHASES.index(moment.phase)], time.monotonic() + DEADLINE
    while count.value < moment.nth and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(moment.delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    return PHASES[watch.phase.value] if watch.phase.value >= 0 else "between"


def draw(seed: int, number: int, watch: Watch) -> list[Moment]:
    """Moments spread over the phases of an undisturbed run that `watch` has seen."""
    rng, moments = random.Random(seed), []
    for index in range(number):
        place = index % len(PHASES)
        parts = watch.counts[place].value
        length = watch.seconds[place].value / parts
        moments.append(Moment(PHASES[place], rng.randint(1, parts), rng.uniform(0, length)))
    return moments


def go_on(recipe: Recipe) -> str:
    """Do what the messages say until the run is finished; return how it was continued."""
    said = finish(lambda: train(recipe, resume=True))
    if "start without --resume" in said:
        said = finish(lambda: train(recipe))
        how = "from the start"
    elif "the run is finished" in said:
        return "was finished"
    else:
        result = records.read_json(Path(recipe.output_dir) / records.RESULT) if not said else {"run_info": {}}
        how = f"from {result['run_info'].get('resumed_from') or 'the trained weights'}"
    assert not said, said
    return how


def digest(run: Path) -> str:
    """Digest of the saved adapter's bytes."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
