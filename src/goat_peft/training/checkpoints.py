"""Which checkpoints are whole: each gets a list of its files, with sizes and digests, once all of them are on the disk.

Transformers writes a checkpoint file by file into its final folder, so a folder that is there says nothing. Only one whose list is there and agrees
is ever resumed from, and older ones go only once the new one has its list. Weights that are no numbers get none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import records
from ..tasks import processes
from .callbacks import diverged

COMPLETE = "complete"
_DAMAGED = "its list of files is damaged"
KEPT = 2  # whole checkpoints of a run; should the newest turn out damaged, there is another


class WholeCheckpoints(TrainerCallback):
    """Seals a checkpoint once everything in it has been written, then removes those that it replaces."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal, then remove; every process of a launch comes here once it has written its part.

        Raises `UserError`, in all of them, if what is trained is no longer finite in one: such a checkpoint would push out those that are.
        """
        finite = all(processes.gather([_is_finite(kwargs["model"])]))
        place = Path(str(args.output_dir))
        new = place / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero:
            if finite:
                seal(new)
                sealed = [checkpoint for checkpoint in newest_first(place) if is_sealed(checkpoint)]
                for old in sealed[KEPT:]:
                    remove(old)
            else:
                remove(new)
        processes.wait()
        if not finite:
            raise diverged(args, f"the trained weights are not finite at step {state.global_step}")


def _is_finite(model: nn.Module) -> bool:
    """Whether what this process holds of the trained weights is finite."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            held = getattr(parameter, "ds_tensor", parameter.detach())  # ZeRO-3 keeps a part there
            if not torch.isfinite(held.to_local() if isinstance(held, DTensor) else held).all():
                return False
    return True


def seal(checkpoint: Path) -> None:
    """Bring every file to the disk, then write the list of them."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE):
        records.sync(path)
        files[str(path.relative_to(checkpoint))] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    for place in [checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())]:
        records.sync(place)
    records.write_json(checkpoint / COMPLETE, files)
    records.sync(checkpoint.parent)


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in words; None for a whole one.

    Version 0.1.0 marked a whole checkpoint by an empty list: that one is believed, as far as the trainer's own state is there.
    """
    try:
        if (checkpoint / COMPLETE).stat().st_size == 0:
            return None if (checkpoint / TRAINER_STATE_NAME).is_file() else f"{TRAINER_STATE_NAME} is missing"
        files = records.read_json(checkpoint / COMPLETE)
    except OSError:
        return "it was not written to its end"
    except ValueError:
        return _DAMAGED
    if not isinstance(files, dict) or not files or not all(_is_entry(name, known) for name, known in files.items()):
        return _DAMAGED
    for name, known in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if path.stat().st_size != known["bytes"] or _digest(path) != known["sha256"]:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint was once written to its end; `fault` says whether it still is what was written."""
    return os.path.lexists(checkpoint / COMPLETE)


def _is_entry(name: str, known: Any) -> bool:
    """Whether this can be a line of the list: a file inside the checkpoint, its size and digest."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    return inside and isinstance(known, dict) and {"bytes", "sha256"} <= known.keys()


def newest_first(place: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, by their step."""
    found = [path for path in place.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def last_whole(place: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint, or None; and those passed over for it, with their faults."""
    passed: dict[Path, str] = {}
    for checkpoint in newest_first(place):
        why = fault(checkpoint)
        if why is None:
            return checkpoint, passed
        passed[checkpoint] = why
    return None, passed


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; from the first moment on it no longer counts as whole."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def remove_unsealed(place: Path) -> None:
    """Remove what a save left that did not come to its end."""
    for checkpoint in newest_first(place):
        if not is_sealed(checkpoint):
            remove(checkpoint)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
