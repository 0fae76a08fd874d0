"""Runs as folders, without the time that training takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from goat_peft import recipes, records
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import bind
from goat_peft.training.loading import load_base, load_processor


def untrained_run(plain: dict[str, Any], run: Path) -> Path:
    """A run's folder as if it had finished without a step: recipe, adapter as it starts, a result without figures."""
    recipe = recipes.check(plain)
    task = bind(recipe.task)
    set_seed(recipe.training.seed)
    base = load_base(recipe.model, task, load_processor(recipe.model, task))
    METHODS[recipe.method.name].build(base, recipe.method, task.peft_type).save_pretrained(run / "adapter")
    records.write_text(run / records.RECIPE, recipes.to_yaml(recipe))
    result = {
        "run_info": {"created_at": "2026-01-01T00:00:00+00:00", "command": "goat train tiny"},
        "train_info": {"train_time": 0.0, "num_trainable_params": 1, "num_total_params": 1, "metrics": [{"step": 0}]},
    }
    records.write_json(run / records.RESULT, result)
    return run


def nobody(what: str, done: int, total: int) -> None:
    """Watches nothing."""
