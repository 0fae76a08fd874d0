"""Recipes on a quantised base: `model.quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_bases import KINDS
from safetensors.torch import load_file
from torch import nn

from goat_peft.errors import UserError
from goat_peft.recipes import load
from goat_peft.tasks import bind
from goat_peft.training import loading, train

GOAT = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2}


def recipe(plain: dict[str, Any], tmp_path: Path, kind: str, method: Any, **training: Any) -> Any:
    import yaml

    file = tmp_path / "recipe.yaml"
    changes = {
        "model": {**plain["model"], "quantize": kind},
        "method": method,
        "training": plain["training"] | training,
    }
    file.write_text(yaml.safe_dump(plain | changes))
    return load(str(file), [])


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(*k.values, marks=[*k.marks, pytest.mark.slow]) for k in KINDS[1:])]
)
def test_a_language_model_trains_and_is_scored_again(kind: str, generate: dict[str, Any], tmp_path: Path) -> None:
    checked = recipe(generate, tmp_path, kind, GOAT, max_steps=3)
    run = train(checked)
    losses = [row["train loss"] for row in run.result["train_info"]["metrics"] if "train loss" in row]
    assert len(losses) >= 3 and all(0 < loss < 10 for loss in losses)
    task = bind(checked.task)
    processor = loading.load_processor(checked.model, task)
    again = loading.load_trained(checked, run.path, task, processor)
    saved = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert saved.pop("base_model.model.goat_digest").shape == (32,)
    state = again.state_dict()
    for name, tensor in saved.items():
        part, _, kind_of = name.rpartition(".")
        assert torch.equal(state[f"{part}.{kind_of}.default"], tensor)
    quantised = [
        m for m in again.modules() if type(m).__name__ == "Linear" and getattr(m, "quantization_backend", None)
    ]
    assert len(quantised) == 14 and type(again.get_output_embeddings()) is nn.Linear


def test_a_classifiers_head_is_left_in_floating_point(classify: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    checked = recipe(classify, tmp_path, "nf4", GOAT)
    task = bind(checked.task)
    model = loading.load_base(checked.model, task, loading.load_processor(checked.model, task))
    assert type(model.classifier) is nn.Linear and model.classifier.weight.dtype == torch.float32
    assert type(model.bert.encoder.layer[0].intermediate.dense).__name__ == "Linear4bit"


@pytest.mark.parametrize("method", ["full", "full-moe", "pissa", "olora"])
def test_methods_that_write_to_the_base_are_refused(method: str, classify: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"quantize=nf4: {method} changes the base's weights"):
        recipe(classify, tmp_path, "nf4", method)


def test_a_missing_library_is_named(classify: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = recipe(classify, tmp_path, "int8", GOAT)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.quantize=int8: needs bitsandbytes; pip install"):
        loading.quantization_config(checked.model, bind(checked.task))
