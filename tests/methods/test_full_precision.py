"""Full fine-tuning of weights that load in bfloat16: it trains in float32, and a run is scored as it loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from goat_peft import recipes
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import bind
from goat_peft.training import evaluate, train
from goat_peft.training.loading import load_processor, load_trained

FULL = ("full", "full-moe")


@pytest.mark.parametrize("name", FULL)
def test_small_updates_move_every_weight(name: str, tiny_bert_dir: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, dtype=torch.bfloat16)
    method = METHODS[name]
    model = method.build(base, method.options(), None)
    weights = {key: p for key, p in model.named_parameters() if "norm" in key.lower() and key.endswith("weight")}
    assert weights and {p.dtype for p in model.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-5, weight_decay=0.0)
    for parameter in weights.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # From 1, bfloat16's next number below lies 0.004 away: an update of 1e-5 would be lost.
    assert all((p < 1).all() for p in weights.values())


@pytest.mark.parametrize("name", FULL)
def test_a_run_is_saved_in_float32_and_loads_and_scores_in_the_recipe_s_dtype(
    name: str, classify: dict[str, Any], tmp_path: Path
) -> None:
    data = json.loads(json.dumps(classify))
    data["model"]["dtype"] = "bfloat16"
    data["method"] = name
    data["training"] |= {"max_steps": 2, "epochs": None}
    recipe = recipes.check(data)
    run = train(recipe)
    saved = load_file(run.path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}
    task = bind(recipe.task)
    loaded = load_trained(recipe, run.path, task, load_processor(recipe.model, task))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    scored = evaluate(run.path, output=tmp_path / "scored")
    assert (scored.path / "predictions.jsonl").read_text() == (run.path / "predictions.jsonl").read_text()
