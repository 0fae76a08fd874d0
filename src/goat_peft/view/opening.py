"""A finished run, opened again: its recipe, its task, what turns rows into inputs, and the trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from .. import records
from ..errors import UserError
from ..recipes import Recipe, load
from ..tasks import Task, bind
from ..training.loading import device, load_processor, load_trained, quiet_libraries

Watch = Callable[[str, int, int], None]  # what is under way, how much is done, of how much


@dataclass(frozen=True)
class Opened:
    """What a run trained, ready for a forward: on the accelerator if there is one, in eval mode."""

    path: Path
    recipe: Recipe
    task: Task
    processor: Any  # a tokenizer, or what the task makes of images
    model: Any

    @property
    def length(self) -> int | None:
        """How many tokens the model takes, if its config says so."""
        names = ("max_position_embeddings", "n_positions")
        return next((found for name in names if (found := getattr(self.model.config, name, None))), None)


def read_recipe(run: Path, overrides: list[str]) -> Recipe:
    """The run's own recipe with `overrides`; raises `UserError` for a folder that holds no finished run."""
    file = run / records.RECIPE
    if not file.is_file():
        raise UserError(f"run={run}: has no {records.RECIPE}; give the folder that `goat train` wrote")
    if not (run / "adapter").is_dir() and not (run / "model").is_dir():
        raise UserError(f"run={run}: has no adapter and no model; the run did not finish, continue it with --resume")
    return load(str(file), overrides)


def open_run(run: Path, overrides: list[str]) -> Opened:
    """Load what `run` saved, as its recipe with `overrides` says; raises `UserError` as `read_recipe` does, or for broken files."""
    recipe = read_recipe(run, overrides)
    task = bind(recipe.task)
    with quiet_libraries():
        processor = load_processor(recipe.model, task)
        set_seed(recipe.training.seed)  # a part that the base comes without was drawn at random when the run began
        model = load_trained(recipe, run, task, processor).to(device()).eval()
    return Opened(run, recipe, task, processor, model)
