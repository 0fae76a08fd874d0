"""Calibration rows: chosen, split in two, and turned into batches by the task's own trainer, whatever its family."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..errors import UserError
from ..tasks import Processor, Task
from ..tasks.sources import load_source
from ..training.run import CHECKPOINTING_NAMES

HELD_BACK = 5  # every so manieth row is not calibrated on: the losses are measured there


@dataclass(frozen=True)
class Rows:
    """Raw rows: `fit` to calibrate and distil on, `held_back` to measure losses on."""

    fit: Dataset
    held_back: Dataset


def choose_rows(task: Task, calibrate: str, count: int, scored: str, seed: int) -> Rows:
    """Draw `count` rows of a split (train, validation), or of a file in the columns of the task.

    Raises:
        UserError: there are no such rows, or they are those that the models are scored on.
    """
    if calibrate == scored or calibrate == "test":
        raise UserError(f"--calibrate {calibrate}: the models are scored on these rows; give train, or a file of rows")
    if calibrate in ("train", "validation"):
        found = getattr(task.load(calibrate), calibrate)
        if found is None:
            raise UserError(f"--calibrate {calibrate}: the task has no such rows; give a file of rows in its columns")
    else:
        data = task.options.data
        like = data.train or data.test
        places = {"path": calibrate, "dataset": None, "rows": None, "limit": None, "max_tokens": None}
        found = load_source(like.model_copy(update=places), "--calibrate")
    if len(found) < 2:
        raise UserError(f"--calibrate {calibrate}: holds one row; give two at least")
    order = random.Random(seed).sample(range(len(found)), min(count, len(found)))
    back = order[::HELD_BACK]
    return Rows(found.select([i for i in order if i not in set(back)]), found.select(back))


@contextmanager
def batches_of(
    task: Task, rows: Rows, processor: Processor, batch_size: int, seed: int
) -> Iterator[Callable[[nn.Module], Trainer]]:
    """Yield a function that builds the task's trainer around a model: its batches and its loss, no training.

    Its training rows are `rows.fit`, its evaluation rows `rows.held_back`, both without what training does at random to rows.
    """
    fit, held_back = (task.prepare(part, processor, "validation") for part in (rows.fit, rows.held_back))
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": batch_size,
            "per_device_eval_batch_size": batch_size,
            "seed": seed,
            "bf16": False,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.accelerator.is_available(),
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        # As in training: the name changed during transformers 5, and TRL's default is on.
        arguments[next(f.name for f in fields(TrainingArguments) if f.name in CHECKPOINTING_NAMES)] = False

        def build(model: nn.Module) -> Trainer:
            trainer = task.trainer(model, arguments, fit, held_back, processor, [])
            trainer.remove_callback(PrinterCallback)
            return trainer

        yield build


def mean_loss(trainer: Trainer) -> float:
    """The task's loss on the held-back rows, in eval mode and so without the balance loss."""
    return float(trainer.evaluate()["eval_loss"])
