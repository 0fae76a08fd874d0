"""`goat launch` hands accelerate its shipped configuration and `goat train`; mistakes are told before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands import launch as accelerate_launch
from safetensors.torch import load_file
from typer.testing import CliRunner

from goat_peft import recipes
from goat_peft.cli import app as cli
from goat_peft.cli import launch
from goat_peft.errors import UserError
from goat_peft.training import train

USES = {"ddp": "multi_gpu", "fsdp2": "use_fsdp", "zero2": "use_deepspeed", "zero3": "use_deepspeed"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have replaced this process, on a machine with two GPUs and DeepSpeed."""
    found: list[list[str]] = []
    monkeypatch.setattr(launch.os, "execv", lambda _, command: found.append(command))
    monkeypatch.setattr(launch, "find_spec", lambda _: object())
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    return found


def test_every_shipped_configuration_says_what_its_name_does() -> None:
    assert launch.engines() == sorted(USES)


@pytest.mark.parametrize("engine", USES)
def test_accelerate_reads_the_command_as_meant(engine: str, started: list[list[str]]) -> None:
    outcome = CliRunner().invoke(cli.app, ["launch", engine, "demo-reviews", "method.r=16", "--resume"])
    assert outcome.exit_code == 0, outcome.output
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert "accelerate launch --config_file" in outcome.output  # to copy, and change
    parsed = accelerate_launch.launch_command_parser().parse_args(command[3:])
    assert parsed.training_script_args == ["train", "demo-reviews", "method.r=16", "--resume"]
    assert parsed.module and parsed.training_script == "goat_peft"
    read, _, _ = accelerate_launch._validate_launch_command(parsed)
    assert read.num_processes == 2 and getattr(read, USES[engine]) and read.mixed_precision == "no"
    assert (read.use_fsdp and read.fsdp_version == 2) == (engine == "fsdp2")
    if engine.startswith("zero"):
        assert read.zero_stage == int(engine[-1]) and read.gradient_clipping == "auto"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ddb", "demo-reviews"], "engine=ddb: no such engine; did you mean ddp"),
        (["ddp", "demo-review"], "did you mean demo-reviews"),
        (["ddp", "demo-reviews", "training.epoch=1"], "epoch"),
        (["ddp", "demo-reviews", "--processes", "3"], "--processes=3: this machine has 2 GPUs"),
    ],
)
def test_mistakes_are_told_at_once(arguments: list[str], told: str, started: list[list[str]]) -> None:
    outcome = CliRunner().invoke(cli.app, ["launch", *arguments])
    assert isinstance(outcome.exception, UserError) and told in str(outcome.exception)
    assert started == []


def test_what_the_machine_lacks_is_told(monkeypatch: pytest.MonkeyPatch, started: list[list[str]]) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU; on its CPU only ddp runs"):
        launch.launch("fsdp2", "demo-reviews")
    monkeypatch.setattr(launch, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs DeepSpeed, which is not installed"):
        launch.launch("zero3", "demo-reviews")
    assert started == []


@pytest.mark.slow
def test_the_command_itself_on_two_cpu_processes(classify: dict[str, Any], tmp_path: Path) -> None:
    goat = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.0}
    training = {"learning_rate": 1e-3, "max_steps": 4, "batch_size": 4, "group_by_length": False, "logging_steps": 1}
    data = classify | {"method": goat, "training": training}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data | {"output_dir": str(tmp_path / "launched")}))
    command = [sys.executable, "-m", "goat_peft", "launch", "ddp", str(file), "--processes", "2"]
    subprocess.run(command, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    train(
        recipes.check(
            data | {"training": training | {"gradient_accumulation_steps": 2}, "output_dir": str(tmp_path / "alone")}
        )
    )
    found, expected = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("launched", "alone")
    )
    for tensors in (found, expected):  # of bits, which may differ
        assert tensors.pop("base_model.model.goat_digest").shape == (32,)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-4, name
