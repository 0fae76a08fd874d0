"""The same recipe twice gives the same file, byte for byte, and so does a run that was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from goat_peft import recipes
from goat_peft.training import callbacks, train
from goat_peft.training import run as run_module

GOAT = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.1}
TRAINING = {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 8, "logging_steps": 2, "save_steps": 2}


def recipe_of(data: dict[str, Any], output: Path) -> dict[str, Any]:
    training = {k: v for k, v in data["training"].items() if k != "epochs"} | TRAINING
    return data | {"method": GOAT, "training": training, "output_dir": str(output)}


def saved(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


class Stop(callbacks.Divergence):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise InterruptedError


@pytest.mark.parametrize("family", ["classify", pytest.param("generate", marks=pytest.mark.slow)])
def test_two_runs_and_a_resumed_one_are_the_same_to_the_byte(
    request: pytest.FixtureRequest, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = request.getfixturevalue(family)
    first, second = (train(recipes.check(recipe_of(data, tmp_path / name))).path for name in ("first", "second"))
    assert saved(first) == saved(second)
    cut = recipes.check(recipe_of(data, tmp_path / "cut"))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Divergence", Stop)
        with pytest.raises(InterruptedError):
            train(cut)
    resumed = train(cut, resume=True)
    assert resumed.result["run_info"]["resumed_from"] == "checkpoint-2"
    assert saved(resumed.path) == saved(first)


@pytest.mark.slow
def test_two_commands_are_the_same_to_the_byte(classify: dict[str, Any], tmp_path: Path) -> None:
    for name in ("first", "second"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe_of(classify, tmp_path / name)))
        subprocess.run(
            [sys.executable, "-m", "goat_peft", "train", str(file)],
            check=True,
            timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )
    assert saved(tmp_path / "first") == saved(tmp_path / "second")
