"""What watches a training run: the progress bar, whole checkpoints, a clean stop, a loss that is no number."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from .folder import COMPLETE


class Interrupted(Exception):
    """The user stopped the run; its last checkpoint is whole."""


def bar() -> Progress:
    """Build the progress bar that all parts of a run share; it leaves no line behind when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        transient=True,
        console=Console(stderr=True),
    )


class Bar(TrainerCallback):
    """Shows steps and the last logged loss."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=None, note="")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Learn how many steps there are."""
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on by one step."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the loss."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self.progress.update(self.task, note=f"loss {float(logs['loss']):.3f}")


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once everything in it has been written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the mark."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class FirstInterrupt:
    """Inside a `with`, the first Ctrl-C sets `asked` and the second one interrupts at once; outside the main thread it leaves signals alone."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class CleanStop(FirstInterrupt, TrainerCallback):
    """Turns the first Ctrl-C around `trainer.train()` into: finish the step, save, stop."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop when asked to."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


class FiniteLoss(TrainerCallback):
    """Stops a run whose loss is no longer a number, naming the step."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise `UserError` for a NaN or infinite loss."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise UserError(
                f"training.learning_rate={args.learning_rate}: the loss is {loss} at step {state.global_step}; "
                "try a smaller learning rate or a longer warmup"
            )
