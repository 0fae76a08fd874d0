"""Experiment trackers (wandb, trackio, tensorboard) through transformers' integrations, up to the figures after training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    get_reporting_integration_callbacks,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from ..errors import UserError
from .folder import TENSORBOARD

AVAILABLE: dict[str, Callable[[], bool]] = {
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
    "tensorboard": is_tensorboard_available,
}


class Trackers:
    """The trackers of one run; a context manager that ends their runs, also when the training fails.

    Where they send their logs, and whether they are offline, is set the way each of them documents. Tensorboard's files
    lie in the run folder.

    Args:
        names: as in `training.report_to`.
        folder: the run folder.

    Raises:
        UserError: a package is not installed.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        for name in names:
            if not AVAILABLE[name]():
                raise UserError(
                    f"training.report_to={name}: the package {name} is not installed; pip install {name}, or leave it out"
                )
        self.names = names
        self.callbacks: list[TrainerCallback] = [kind() for kind in get_reporting_integration_callbacks(names)]
        for callback in self.callbacks:
            # Its own default lies among the checkpoints, which are removed when the run is finished.
            if getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(folder / TENSORBOARD)  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for callback in self.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.close()
        for name in {"wandb", "trackio"} & set(self.names):
            finish(name)

    def log(self, figures: dict[str, Any], step: int, arguments: TrainingArguments, model: Any) -> None:
        """Send the figures of the final evaluation, under `test/...`, at the last training step."""
        logs = {f"test_{name}": value for name, value in figures.items()}
        state = TrainerState(global_step=step, is_world_process_zero=arguments.process_index == 0)
        for callback in self.callbacks:
            callback.on_log(arguments, state, TrainerControl(), logs=logs, model=model)


def finish(name: str) -> None:
    """End a tracker's run in this process, so that the next one here starts its own; nothing where none was started."""
    tracker = importlib.import_module(name)
    if name == "wandb" and tracker.run is None:
        return
    with suppress(RuntimeError):  # trackio has no other way to say that there is no run
        tracker.finish()
