"""What transformers' own resuming leaves out, so that a resumed run draws the same numbers as one that was never stopped.

A trainer that goes on in the middle of an epoch has to put the rows in that epoch's order again. Sampling by length draws the order from the global
generator, as it was when the epoch began, and a checkpoint only holds that generator as it is when it is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

FILE = "epoch.safetensors"


class ExactResume(TrainerCallback):
    """Keeps the generator's state (5056 bytes) of the epoch's beginning and of the save in each checkpoint, and restores the right one.

    Goes before whatever seals checkpoints. A save at an epoch's last step waits for the evaluation at its end, which draws a number too and would be
    left out after a resume.

    Args:
        checkpoint: where training goes on from, or None.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self._began: torch.Tensor | None = None
        self._waits = False

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore on the first epoch after a resume, and remember."""
        file = self.checkpoint / FILE if self.checkpoint and self._began is None else None
        if file is not None and file.is_file():
            saved = load_file(file)
            torch.set_rng_state(saved["now" if _is_whole(state.epoch) else "began"])
        self._began = torch.get_rng_state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put a save off to the epoch's end if that is now."""
        if control.should_save and args.eval_strategy == IntervalStrategy.EPOCH and _is_whole(state.epoch):
            control.should_save, self._waits = False, True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save what was put off."""
        if self._waits:
            control.should_save, self._waits = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the two states."""
        if state.is_world_process_zero and self._began is not None:
            place = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_file({"began": self._began, "now": torch.get_rng_state()}, place / FILE)


def _is_whole(epoch: float | None) -> bool:
    return epoch is not None and float(epoch).is_integer()
