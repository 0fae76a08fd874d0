"""Every registered method: what it says of itself, a run with a recipe that names it, and the same score after loading."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.methods import GRID
from goat_peft.recipes.schema import METHODS
from goat_peft.training import evaluate, train

NAMES = [
    "adamole", "dora", "full", "full-moe", "goat", "goat-released", "hydralora", "lora", "milora", "molora", "olora", "pissa", "rslora",
]  # fmt: skip


def recipe(classify: dict[str, Any], method: str, **training: Any) -> recipes.Recipe:
    classify["method"] = method
    classify["training"] |= {"max_steps": 3, "epochs": None, **training}
    return recipes.check(classify)


def test_registry_holds_the_papers_methods() -> None:
    assert METHODS.names() == NAMES
    for name in NAMES:
        method = METHODS[name]
        assert len(method.learning_rates) == GRID and sorted(method.learning_rates) == list(method.learning_rates)
        assert method.description and method.source and "\n" not in method.description


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_the_method_and_its_run_loads_again(name: str, classify: dict[str, Any], tmp_path: Path) -> None:
    run = train(recipe(classify, name))
    last = run.result["train_info"]["metrics"][-1]
    assert math.isfinite(last["train loss"]) and run.result["train_info"]["num_trainable_params"] > 0
    scored = evaluate(run.path, output=tmp_path / "scored")
    stored = (run.path / "predictions.jsonl").read_text(encoding="utf-8")
    assert (scored.path / "predictions.jsonl").read_text(encoding="utf-8") == stored


def test_a_written_out_recipe_says_what_its_preset_set(classify: dict[str, Any]) -> None:
    given = recipe(classify, "hydralora")
    written = recipes.to_yaml(given)
    assert "shared_A: true" in written and "router: softmax" in written and "lora_dropout: 0.05" in written
    assert recipes.check(yaml.safe_load(written)) == given


def test_full_moe_starts_as_the_base_and_uses_k_experts(tiny_bert_dir: Path) -> None:
    def base() -> torch.nn.Module:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir).eval()

    inputs = {"input_ids": torch.randint(4, 20, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    wanted = base()(**inputs).logits
    method = METHODS["full-moe"]
    model = method.build(base(), method.options(num_experts=4, top_k=2), None)
    torch.testing.assert_close(model(**inputs).logits, wanted)
    layer = model.get_submodule("bert.encoder.layer.0.output.dense")
    with torch.no_grad():
        layer.weight.normal_()
    x = torch.randn(6, layer.in_features)
    rows = []
    for token in x:
        logits = layer.router @ token
        best = torch.topk(logits, 2).indices
        shares = torch.softmax(logits[best], 0)
        rows.append(sum(s * (layer.weight[i] @ token + layer.bias[i]) for s, i in zip(shares, best, strict=True)))
    torch.testing.assert_close(layer(x), torch.stack(rows))


def test_full_moe_says_when_memory_is_short(tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    method = METHODS["full-moe"]
    with pytest.raises(UserError, match=r"method.num_experts=8: full-rank experts need about .* GiB"):
        method.build(AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir), method.options(), None)


TOY = """
from typing import Literal

from goat_peft.methods import Method, register
from goat_peft.recipes import MethodOptions


class BiasOptions(MethodOptions):
    name: Literal["bias-only"] = "bias-only"


def build(model, options, task_type):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    return model


register(
    Method(
        name="bias-only",
        description="biases and the head",
        source="Ben Zaken et al., ACL 2022, arXiv 2106.10199",
        options=BiasOptions,
        build=build,
        learning_rate=1e-3,
        saves_adapter=False,
    )
)
"""


def test_a_method_added_in_one_file(classify: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bias_only_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("bias_only_method")
    try:
        run = train(recipe(classify, "bias-only"))
        info = run.result["train_info"]
        assert 0 < info["num_trainable_params"] < info["num_total_params"] / 10
        assert run.result["run_info"]["train_config"]["training"]["learning_rate"] == 0.01
    finally:
        METHODS.unregister("bias-only")
