"""The run folder: what may be started, resumed or replaced. A kill at any moment leaves one that can be continued or replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from .. import records
from ..errors import UserError
from ..recipes import Recipe, is_stored, to_yaml
from . import checkpoints

TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder; `notes` say what was found broken when it was opened."""

    path: Path
    notes: tuple[str, ...] = ()

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
        """Return the newest checkpoint that was written to its end and is still as it was written, or None."""
        return checkpoints.last_whole(self.checkpoints)[0]

    @contextmanager
    def saving(self, as_adapter: bool) -> Iterator[Path]:
        """A place to save the trained weights to, beside their own; `publish` moves them there. Removed again if saving fails."""
        place = _staged(self.adapter if as_adapter else self.model)
        shutil.rmtree(place, ignore_errors=True)
        try:
            yield place
            for file in place.rglob("*"):
                records.sync(file)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def publish(self) -> None:
        """Move saved weights to their own place; call it once `trained` is written, which says that they are whole."""
        for place in (self.adapter, self.model):
            if _staged(place).is_dir():
                shutil.rmtree(place, ignore_errors=True)
                _staged(place).rename(place)

    def tidy(self) -> None:
        """Remove what kills left half written."""
        for path in records.partials(self.path):
            path.unlink(missing_ok=True)
        if self.trained.is_file():
            self.publish()
        for place in (self.adapter, self.model):
            shutil.rmtree(_staged(place), ignore_errors=True)


def _staged(place: Path) -> Path:
    return place.with_name(f".{place.name}.saving")


def open_folder(
    recipe: Recipe, resume: bool, overwrite: bool, ready: Callable[[], None] = lambda: None
) -> tuple[RunFolder, Path | None]:
    """Prepare the folder of a run; return it and the checkpoint to resume from.

    `ready` is called before an old run is removed; what it raises leaves that run whole.

    Raises:
        UserError: the folder holds files that are not a run's, or a finished run, or an unfinished one (with checkpoints, whole or damaged since) and
            neither `resume` nor `overwrite` is set, or `resume` is set and the recipe differs from the one that was started.
    """
    folder = RunFolder(Path(recipe.output_dir or f"runs/{recipe.name}"))
    where = f"output_dir={folder.path}"
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one of them")
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{where}: is a file; choose another output_dir")
    checkpoint, passed = checkpoints.last_whole(folder.checkpoints)
    if resume:
        if folder.result.is_file() and records.is_finished(folder.path):
            raise UserError(f"{where}: the run is finished; `goat eval {folder.path}` scores it again")
        if checkpoint is None and not folder.trained.is_file() and not folder.scoring.is_dir():
            way = "--overwrite starts anew" if any(map(checkpoints.is_sealed, passed)) else "start without --resume"
            raise UserError(f"{where}: no complete checkpoint to resume from{_told(passed)}; {way}")
        if not is_stored(recipe, folder.recipe):
            raise UserError(
                f"{where}: was started with another recipe ({folder.recipe}); resume with the same settings"
            )
        folder.tidy()
        for broken in passed:  # else the trainer would write a later save of the same step among its files
            checkpoints.remove(broken)
        start = checkpoint.name if checkpoint else "the start"
        notes = [f"{broken.name} was passed over, {why}; resumed from {start}" for broken, why in passed.items()]
        return replace(folder, notes=() if folder.trained.is_file() else tuple(notes)), checkpoint
    occupied = folder.path.is_dir() and bool(set(folder.path.iterdir()) - set(records.partials(folder.path)))
    if occupied and not holds_run(folder):
        raise UserError(f"{where}: holds files that are not a run's; choose an empty folder or a new one")
    if occupied and not overwrite:
        if folder.result.is_file() and records.is_finished(folder.path):
            raise UserError(f"{where}: holds a finished run; give --overwrite to replace it, or another output_dir")
        if checkpoint is not None or folder.trained.is_file():
            raise UserError(
                f"{where}: holds an unfinished run; give --resume to continue it or --overwrite to replace it"
            )
        if damaged := {broken: why for broken, why in passed.items() if checkpoints.is_sealed(broken)}:
            raise UserError(
                f"{where}: holds an unfinished run, and no checkpoint of it is whole any more{_told(damaged)}; bring back what changed and give --resume, "
                "or give --overwrite to replace it"
            )
    if occupied:
        ready()
        clear(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: cannot be made ({error.strerror}); choose a folder you may write to") from error
    records.write_text(folder.recipe, to_yaml(recipe))
    folder.result.unlink(missing_ok=True)
    folder.tidy()
    return folder, None


def _told(faults: dict[Path, str]) -> str:
    """The faults of checkpoints, in brackets; nothing where there are none."""
    return f" ({'; '.join(f'{checkpoint.name}: {why}' for checkpoint, why in faults.items())})" if faults else ""


def holds_run(folder: RunFolder) -> bool:
    """Tell whether a run wrote what lies in the folder; only then may its parts be removed.

    A `recipe.yaml` alone is not enough beside folders that a run writes later: a user may keep one of his own next to
    his `tests`.
    """
    names = {path.name for path in folder.path.iterdir()} - {path.name for path in records.partials(folder.path)}
    has_result = "train_info" in _keys(folder.result)
    if not set(Recipe.model_fields) <= _keys(folder.recipe):
        # What a comparison leaves of a run that could not even begin.
        return has_result and names == {records.RESULT}
    return (
        has_result
        or folder.trained.is_file()
        or any(folder.checkpoints.glob(f"*/{checkpoints.COMPLETE}"))
        or names.isdisjoint({records.TESTS, records.FASTCHAT, folder.adapter.name, folder.model.name})
    )


def _keys(file: Path) -> set[str]:
    """Top-level keys of a YAML or JSON file; none where there is no such file or it is something else."""
    try:
        return set(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else set()
    except (yaml.YAMLError, TypeError, ValueError):
        return set()


def clear(folder: RunFolder) -> None:
    """Remove what a run wrote, and nothing else that may lie in its folder; all but its recipe and a result that says so.

    Those two tell a run's folder from a user's: whoever starts the next run there puts his own in their place, last.
    """
    with suppress(OSError):  # a full disk: the old result then goes at once
        records.write_json(folder.result, {"train_info": {"status": "removed"}})
    if folder.result.is_file() and records.is_finished(folder.path):
        folder.result.unlink()
    for checkpoint in checkpoints.newest_first(folder.checkpoints):  # marks first: half of one must not look damaged
        checkpoints.remove(checkpoint)
    others = [folder.path / name for name in (records.TESTS, records.FASTCHAT, TENSORBOARD)]
    for part in (folder.adapter, folder.model, folder.checkpoints, folder.scoring, *others):
        shutil.rmtree(part, ignore_errors=True)
    for name in (
        records.TRAINED,
        records.EXPERT_USAGE,
        records.PREDICTIONS,
        records.CURVE_PICTURE,
        records.EXPERTS_PICTURE,
        records.VIEW,
    ):
        (folder.path / name).unlink(missing_ok=True)
