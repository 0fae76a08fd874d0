"""The run folder: what may be started, resumed or replaced, and which checkpoints are whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import records
from ..errors import UserError
from ..recipes import Recipe, to_yaml

# Written into a checkpoint after everything else: a folder without it was cut short and is never resumed from.
COMPLETE = "complete"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def adapter(self) -> Path:
        """Where an adapter lies."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """Where a fully fine-tuned model lies."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie while the run is under way."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """The result file."""
        return self.path / records.RESULT

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / records.RECIPE

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, or None."""
        whole = [path.parent for path in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def open_folder(recipe: Recipe, resume: bool, overwrite: bool) -> tuple[RunFolder, Path | None]:
    """Prepare the folder of a run; return it and the checkpoint to resume from.

    Raises:
        UserError: the folder holds a finished run, or an unfinished one and neither `resume` nor `overwrite` is set,
            or `resume` is set and the recipe differs from the one that was started.
    """
    folder = RunFolder(Path(recipe.output_dir or f"runs/{recipe.name}"))
    where = f"output_dir={folder.path}"
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one of them")
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{where}: is a file; choose another output_dir")
    checkpoint = folder.last_checkpoint()
    if resume:
        if folder.result.is_file() and records.is_finished(folder.path):
            raise UserError(f"{where}: the run is finished; `goat eval {folder.path}` scores it again")
        if checkpoint is None:
            raise UserError(f"{where}: no complete checkpoint to resume from; start without --resume")
        started = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else ""
        if started != to_yaml(recipe):
            raise UserError(
                f"{where}: was started with another recipe ({folder.recipe}); resume with the same settings"
            )
        return folder, checkpoint
    occupied = folder.path.is_dir() and any(folder.path.iterdir())
    if occupied and not overwrite:
        if folder.result.is_file() and records.is_finished(folder.path):
            raise UserError(f"{where}: holds a finished run; give --overwrite to replace it, or another output_dir")
        if checkpoint is not None:
            raise UserError(
                f"{where}: holds an unfinished run; give --resume to continue it or --overwrite to replace it"
            )
        if not folder.recipe.is_file():
            raise UserError(f"{where}: holds files that are not a run's; choose an empty folder or a new one")
    if occupied:
        clear(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: cannot be made ({error.strerror}); choose a folder you may write to") from error
    records.write_text(folder.recipe, to_yaml(recipe))
    return folder, None


def clear(folder: RunFolder) -> None:
    """Remove what a run wrote, and nothing else that may lie in its folder."""
    for part in (folder.adapter, folder.model, folder.checkpoints):
        shutil.rmtree(part, ignore_errors=True)
    for name in (
        records.RESULT,
        records.RECIPE,
        records.EXPERT_USAGE,
        records.PREDICTIONS,
        records.CURVE_PICTURE,
        records.EXPERTS_PICTURE,
    ):
        (folder.path / name).unlink(missing_ok=True)
