"""Scoring: a model on a recipe's split, or a finished run once more."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from .. import records
from ..errors import UserError
from ..recipes import Evaluation, Recipe, load
from ..tasks import Scores, Splits, Task, bind
from .callbacks import bar
from .loading import device, load_tokenizer, load_trained, quiet_libraries


def score(
    task: Task,
    model: nn.Module,
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    settings: Evaluation,
    progress: Progress,
    label: str = "score",
) -> tuple[Scores, list[dict[str, Any]]]:
    """Score `model` on the wanted split; also return the expert usage on it (empty for a model without experts)."""
    rows = splits.named(settings.split)
    shown = progress.add_task(f"{label} on {settings.split}", total=len(rows), note="")
    tracks = hasattr(model, "track_expert_usage")
    if tracks:
        model.reset_expert_usage()
    with model.track_expert_usage() if tracks else nullcontext():
        scores = task.evaluate(
            model,
            rows,
            tokenizer,
            settings.batch_size,
            lambda done, total: progress.update(shown, completed=done, total=total),
        )
    progress.remove_task(shown)
    return scores, usage_rows(model)


def usage_rows(model: nn.Module) -> list[dict[str, Any]]:
    """Return the expert usage collected so far as plain rows; empty for a model without experts."""
    get = getattr(model, "expert_usage", None)
    return [] if get is None else [asdict(row) for row in get()]


def evaluate_run(run: Path, overrides: list[str]) -> tuple[Recipe, Scores]:
    """Load what a run saved and score it; `overrides` change the run's own recipe (such as another split).

    Nothing in the run folder changes.
    """
    recipe_file = run / records.RECIPE
    if not recipe_file.is_file():
        raise UserError(f"run={run}: has no {records.RECIPE}; give the folder that `goat train` wrote")
    recipe = load(str(recipe_file), overrides)
    if not (run / "adapter").is_dir() and not (run / "model").is_dir():
        raise UserError(f"run={run}: has no adapter and no model; the run did not finish, continue it with --resume")
    set_seed(recipe.training.seed)
    task = bind(recipe.task)
    splits = task.load()
    splits.named(recipe.evaluation.split)
    with quiet_libraries(), bar() as progress:
        tokenizer = load_tokenizer(recipe.model)
        model = load_trained(recipe, run, task, tokenizer).to(device())
        return recipe, score(task, model, splits, tokenizer, recipe.evaluation, progress)[0]
