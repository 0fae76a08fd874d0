"""Every shipped recipe end to end: a tiny model of its architecture, a few rows in the right form, two steps, every score."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import task_rows
from safetensors import safe_open

from goat_peft import recipes
from goat_peft.recipes import Recipe, TaskOptions
from goat_peft.reporting import pictures
from goat_peft.tasks import bind
from goat_peft.training import train

SMALL = [
    "training.max_steps=2",
    "training.epochs=null",
    "training.batch_size=2",
    "training.gradient_accumulation_steps=1",
    "training.save_steps=0",
    "training.logging_steps=1",
    "evaluation.batch_size=4",
]


def shrink(options: TaskOptions) -> None:
    """Take the few rows that there are, cut texts short, and make pictures small."""
    for split in ("train", "validation", "test"):
        source = getattr(options.data, split)
        if source is not None:
            source.rows = None
    if options.type == "text_classification":
        options.max_length = 32  # the tiny encoders know 64 positions
    elif options.type == "image_classification":
        options.image_size = options.image_size and 32
    else:
        options.max_new_tokens = 2


def small(name: str, rows_folder: Path, tiny_models: dict[str, Path], output: Path) -> Recipe:
    """The recipe with a tiny model, local rows and two steps; method, prompts and scores stay its own."""
    shipped = recipes.load(name)
    overrides = [*SMALL, f"model={tiny_models[shipped.model.name]}", f"output_dir={output}"]
    if shipped.task.name:
        overrides.append(f"task.data.folder={rows_folder / shipped.task.name}")
    if shipped.evaluation.tests:
        overrides.append(f"evaluation.folder={rows_folder}")
    recipe = recipes.load(name, overrides)
    for options in [recipe.task, *recipe.evaluation.tests]:
        shrink(options)
    return recipe


def check(recipe: Recipe, tmp_path: Path) -> None:
    """Train and score; every figure is there and finite, and a classifier's head trained in full beside its adapter."""
    last = train(recipe).result["train_info"]["metrics"][-1]
    assert last["step"] == 2 and math.isfinite(last["train loss"])
    for options in recipe.evaluation.tests or [recipe.task]:
        field = f"{options.name} " if recipe.evaluation.tests else ""
        assert math.isfinite(last[f"test {field}{bind(options).main_metric}"])
    if len(recipe.evaluation.tests) > 1:
        assert math.isfinite(last["test average"])
    assert last["test samples"] == task_rows.COUNT["test"] * max(1, len(recipe.evaluation.tests))
    if "classification" in recipe.task.type:
        with safe_open(tmp_path / "run" / "adapter" / "adapter_model.safetensors", "pt") as tensors:
            heads = [name for name in tensors.keys() if ".classifier" in name]  # noqa: SIM118
        assert heads and not any("goat_" in name for name in heads)


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_trains_and_scores(
    name: str, rows_folder: Path, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "curve", lambda *_: None)  # drawn by other tests; half a second each
    monkeypatch.setattr(pictures, "experts", lambda *_: None)
    recipe = small(name, rows_folder, tiny_models, tmp_path / "run")
    if name == "demo-reviews":
        file = tmp_path / "reviews.csv"
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "category", "movie_name"])
            writer.writerows([f"the film is good {i}", "fresh" if i % 2 else "rotten", f"film {i}"] for i in range(20))
        recipe.task.data.train.path = str(file)
        recipe.task.data.cut.test, recipe.task.data.cut.validation, recipe.task.data.cut.train = 4, 4, 8
    check(recipe, tmp_path)
