"""A process that sees several GPUs trains on one of them, with the batches its recipe asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from goat_peft import recipes
from goat_peft.training import train


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers finds on a machine with two GPUs: it would train with `nn.DataParallel`, on batches of twice the size."""
    looked = TrainingArguments.__post_init__

    def look(arguments: TrainingArguments) -> None:
        looked(arguments)
        arguments._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", look)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(("task", "rows"), [("classify", 40), ("generate", 32), ("pictures", 16)])
def test_every_step_has_the_recipe_s_batch(
    request: pytest.FixtureRequest, two_gpus: None, capsys: pytest.CaptureFixture[str], task: str, rows: int
) -> None:
    data: dict[str, Any] = request.getfixturevalue(task)
    if task == "pictures":
        data["task"]["data"]["cut"] = {"test": 6}
    data["training"] |= {"epochs": 1, "max_steps": None, "batch_size": 4, "gradient_accumulation_steps": 1}
    result = train(recipes.check(json.loads(json.dumps(data)))).result
    assert max(row["step"] for row in result["train_info"]["metrics"]) == -(-rows // 4)
    assert "of 2 GPUs one is used; `goat launch ddp` uses them all" in " ".join(capsys.readouterr().err.split())
