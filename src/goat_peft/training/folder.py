"""The run folder: what may be started, resumed or replaced, and which checkpoints are whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from .. import records
from ..errors import UserError
from ..recipes import Recipe, to_yaml

# Written into a checkpoint after everything else: a folder without it was cut short and is never resumed from.
COMPLETE = "complete"
TENSORBOARD = "tensorboard"


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

    @property
    def trained(self) -> Path:
        """What training found, written once its weights are saved: from then on only the scoring is missing."""
        return self.path / records.TRAINED

    @property
    def scoring(self) -> Path:
        """Where scored rows lie until the run is finished."""
        return self.path / records.SCORING

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, or None."""
        whole = [path.parent for path in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def open_folder(recipe: Recipe, resume: bool, overwrite: bool) -> tuple[RunFolder, Path | None]:
    """Prepare the folder of a run; return it and the checkpoint to resume from.

    Raises:
        UserError: the folder holds files that are not a run's, or a finished run, or an unfinished one and neither `resume` nor `overwrite` is set,
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
        if checkpoint is None and not folder.trained.is_file() and not folder.scoring.is_dir():
            raise UserError(f"{where}: no complete checkpoint to resume from; start without --resume")
        started = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else ""
        if started != to_yaml(recipe):
            raise UserError(
                f"{where}: was started with another recipe ({folder.recipe}); resume with the same settings"
            )
        return folder, checkpoint
    occupied = folder.path.is_dir() and any(folder.path.iterdir())
    if occupied and not holds_run(folder):
        raise UserError(f"{where}: holds files that are not a run's; choose an empty folder or a new one")
    if occupied and not overwrite:
        if folder.result.is_file() and records.is_finished(folder.path):
            raise UserError(f"{where}: holds a finished run; give --overwrite to replace it, or another output_dir")
        if checkpoint is not None or folder.trained.is_file():
            raise UserError(
                f"{where}: holds an unfinished run; give --resume to continue it or --overwrite to replace it"
            )
    if occupied:
        clear(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: cannot be made ({error.strerror}); choose a folder you may write to") from error
    records.write_text(folder.recipe, to_yaml(recipe))
    return folder, None


def holds_run(folder: RunFolder) -> bool:
    """Tell whether a run wrote what lies in the folder; only then may its parts be removed.

    A `recipe.yaml` alone is not enough beside folders that a run writes later: a user may keep one of his own next to
    his `tests`.
    """
    names = {path.name for path in folder.path.iterdir()}
    has_result = "train_info" in _keys(folder.result)
    if not set(Recipe.model_fields) <= _keys(folder.recipe):
        # What a comparison leaves of a run that could not even begin.
        return has_result and names == {records.RESULT}
    return (
        has_result
        or folder.trained.is_file()
        or folder.last_checkpoint() is not None
        or names.isdisjoint({records.TESTS, records.FASTCHAT, folder.adapter.name, folder.model.name})
    )


def _keys(file: Path) -> set[str]:
    """Top-level keys of a YAML or JSON file; none where there is no such file or it is something else."""
    try:
        return set(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else set()
    except (yaml.YAMLError, TypeError, ValueError):
        return set()


def clear(folder: RunFolder) -> None:
    """Remove what a run wrote, and nothing else that may lie in its folder."""
    others = [folder.path / name for name in (records.TESTS, records.FASTCHAT, TENSORBOARD)]
    for part in (folder.adapter, folder.model, folder.checkpoints, folder.scoring, *others):
        shutil.rmtree(part, ignore_errors=True)
    for name in (
        records.RESULT,
        records.RECIPE,
        records.TRAINED,
        records.EXPERT_USAGE,
        records.PREDICTIONS,
        records.CURVE_PICTURE,
        records.EXPERTS_PICTURE,
        records.VIEW,
    ):
        (folder.path / name).unlink(missing_ok=True)
