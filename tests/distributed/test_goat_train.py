"""`goat train` in a launch of two processes writes the run that one process writes with twice the accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from pair import in_pair
from safetensors.torch import load_file

from goat_peft import recipes, records
from goat_peft.training import train

GOAT = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.0, "router_aux_loss_coef": 0.1}


def recipe_of(generate: dict[str, Any], output: Path, **training: Any) -> Any:
    settings = {"max_steps": 4, "batch_size": 4, "group_by_length": False, "learning_rate": 1e-3, "logging_steps": 1}
    return recipes.check(generate | {"method": GOAT, "training": settings | training, "output_dir": str(output)})


def train_in_launch(rank: int, generate: dict[str, Any], output: Path) -> dict[str, Any]:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    torch.distributed.destroy_process_group()  # accelerate starts its own, as `accelerate launch` has it
    run = train(recipe_of(generate, output))
    return {"result": run.result["train_info"]["metrics"], "group": torch.distributed.get_backend()}


@pytest.mark.slow
def test_a_launch_writes_the_run_of_one_process(generate: dict[str, Any], tmp_path: Path) -> None:
    alone = train(recipe_of(generate, tmp_path / "alone", gradient_accumulation_steps=2))
    first, second = in_pair(train_in_launch, tmp_path / "pair", generate, tmp_path / "launched")
    assert first["result"][-1] == second["result"][-1] and first["group"] == "gloo"

    saved, expected = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("launched", "alone")
    )
    for tensors in (saved, expected):  # of bits, which may differ
        assert tensors.pop("base_model.model.goat_digest").shape == (32,)
    assert saved.keys() == expected.keys() and saved
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    result = records.read_json(tmp_path / "launched" / records.RESULT)["train_info"]
    assert result["num_trainable_params"] == alone.result["train_info"]["num_trainable_params"]
    losses, theirs = (
        [row["train loss"] for row in info["metrics"] if "train loss" in row]
        for info in (result, alone.result["train_info"])
    )
    assert losses == pytest.approx(theirs, rel=1e-3) and len(losses) >= 4

    usage, theirs = (records.read_json(tmp_path / run / records.EXPERT_USAGE) for run in ("launched", "alone"))
    assert [row["tokens"] for row in usage["train"]] == [row["tokens"] for row in theirs["train"]]  # of all processes
    for row, other in zip(usage["train"], theirs["train"], strict=True):
        assert row["share"] == pytest.approx(other["share"], abs=0.02)
