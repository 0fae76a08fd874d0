"""One run of a comparison: where it lies, whether it is finished, what it found."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..errors import UserError, first_line
from ..recipes import Recipe, is_stored
from ..training import Interrupted, record, train
from .answers import Answers, read_answers
from .known import Known

_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True)
class Trial:
    """A recipe to run for `label` at `rate` with `seed`, scored by `metric` on `split`; `task` is the task's label.

    `known` is what a file says of it; then it is not run, and has no folder.
    """

    task: str
    label: str
    rate: float
    seed: int
    split: str
    metric: str
    recipe: Recipe
    known: Known | None = None

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(str(self.recipe.output_dir))

    def __str__(self) -> str:
        return f"{self.label} on {self.task}, lr {self.rate:g}, seed {self.seed}, {self.split}"

    def finished(self) -> bool:
        """Whether the run has ended well; raise `UserError` if what lies there was run with other settings."""
        if self.known is not None:
            return True
        if not records.is_finished(self.path):
            return False
        if not is_stored(self.recipe, self.path / records.RECIPE):
            raise UserError(
                f"output={self.path}: holds a run with other settings; give another --output, or remove this folder and those of all runs whose settings changed"
            )
        return True

    def outcome(self) -> Outcome:
        """What the run found; a failed one has an error instead of a value."""
        if self.known is not None:
            return Outcome(self.known.value, None, {"train_info": self.known.info})
        path = self.path / records.RESULT
        if not path.is_file():
            return Outcome(None, "did not run", {})
        result = records.read_json(path)
        if result["train_info"]["status"] != "success":
            return Outcome(None, result["run_info"]["error_msg"], result)
        last = result["train_info"]["metrics"][-1]
        name = f"{'test' if self.split == 'test' else 'valid'} {self.metric}"
        if name not in last or not _is_figure(name, last[name]):
            known = sorted(key.partition(" ")[2] for key, value in last.items() if _is_figure(key, value))
            raise UserError(f"metric={self.metric}: {self.task} does not report it; choose from {', '.join(known)}")
        return Outcome(last[name], None, result)

    @cached_property
    def answers(self) -> list[Answers] | None:
        """Which answers of a run that has ended were right, by test set; None where the task does not say."""
        return read_answers(self.path) if self.known is None else self.known.answers


@dataclass(frozen=True)
class Outcome:
    """The metric's value, or an error; and the whole result."""

    value: float | None
    error: str | None
    result: dict[str, Any]


def execute(recipe: Recipe) -> bool:
    """Train, score and write the result; a run that fails leaves a result of status 'failed', which the next comparison tries again.

    Returns whether it failed for want of memory. Raises only what the user did: `Interrupted` and `KeyboardInterrupt`.
    """
    started = record.now()
    try:
        run = train(recipe, overwrite=True)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a method does wrong must not end the other runs
        records.write_json(Path(str(recipe.output_dir)) / records.RESULT, failure(recipe, started, first_line(error)))
        return _found_no_memory(error)
    drop_weights(run.path)
    return False


def _is_figure(key: str, value: Any) -> bool:
    """Whether a name in a result's last row is that of a score; counts, such as the number of samples, are whole numbers."""
    return key.startswith(("test ", "valid ")) and not isinstance(value, int)


def _found_no_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is for want of memory. Drivers, cuBLAS and the CPU's allocator say so in words alone."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in said for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def drop_weights(run: Path) -> None:
    """Remove what a finished run saved for loading; a comparison needs its figures and predictions only."""
    for name in ("adapter", "model", "checkpoints"):
        shutil.rmtree(run / name, ignore_errors=True)


def failure(recipe: Recipe, started: str, message: str) -> dict[str, Any]:
    """The three blocks of a result for a run that did not end."""
    return {
        "run_info": {
            "created_at": started,
            "experiment_name": f"{recipe.name}/{recipe.method.name}",
            "command": record.command(),
            "train_config": recipe.model_dump(mode="json"),
            "error_msg": message,
        },
        "train_info": {"status": "failed", "metrics": []},
        "meta_info": record.meta_info(recipe),
    }
