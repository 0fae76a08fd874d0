"""`goat plan`: tables, JSON, strategies, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from goat_peft.cli import main
from goat_peft.ops.paths import HAS_TRITON

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed, and a plan says that it needs it")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def recipe(generate: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(generate))
    return str(file)


def test_json_holds_the_parameters_and_bytes_of_the_real_model(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    real = yaml.safe_load(Path(recipe).read_text())["model"]["name"]
    base = AutoModelForCausalLM.from_pretrained(real)
    frozen = sum(p.numel() for p in base.parameters())
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found["total_parameters"] == frozen + trained and found["trained_parameters"] == trained
    parts = found["parts"]["single"]
    assert parts["trained"] == pytest.approx(4 * trained, rel=0.1) and parts["optimiser"] == 2 * parts["trained"]
    assert parts["base"] == pytest.approx(4 * frozen, rel=0.05)
    assert parts["peak"] == sum(parts[name] for name in parts if name not in ("peak", "starting"))
    assert (found["batch"], found["length"], found["loss"]) == (8, 48, "fused")


def test_strategies_divide_what_they_shard(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--gpus", "4", "--json") == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert list(parts) == ["ddp", "fsdp2", "zero2", "zero3"]
    ddp, zero2, zero3 = parts["ddp"], parts["zero2"], parts["zero3"]
    assert ddp["base"] == zero2["base"] == pytest.approx(4 * zero3["base"], rel=0.01)
    assert ddp["optimiser"] == pytest.approx(4 * zero3["optimiser"], rel=0.01) and zero2["optimiser"] < ddp["optimiser"]
    assert len({part["saved"] for part in parts.values()}) == 1


def test_table_and_verdict(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "method=goat", "method.r=8", "method.num_experts=4", "--gpu-memory", "8") == 0
    shown = capsys.readouterr().out
    assert (
        "single: fits in 8 GiB; needs 0.7" in shown and "adapter's frozen factors" in shown and "(an estimate" in shown
    )


def test_what_does_not_fit(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--gpu-memory", "0.5") == 0
    assert "single: does not fit in 0.5 GiB" in capsys.readouterr().out


def test_a_quantised_base_takes_its_bits(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for kind in ("int8", "nf4"):
        assert run(recipe, f"model.quantize={kind}", "--json") == 0
        sizes[kind] = json.loads(capsys.readouterr().out)["parts"]["single"]["base"]
    linears = 2 * (4 * 32 * 32 + 3 * 32 * 64)  # weights of the two blocks' linears
    assert sizes["int8"] - sizes["nf4"] == pytest.approx(linears * (1 - 0.516), abs=14 * 512)
    real = yaml.safe_load(Path(recipe).read_text())["model"]["name"]
    whole = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(real).parameters())
    assert whole - sizes["nf4"] == pytest.approx(linears * (4 - 0.516), abs=40 * 512)


def test_images_and_classes_are_planned(
    classify: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "classify.yaml"
    file.write_text(yaml.safe_dump(classify))
    assert run(str(file), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length"] == 32 and found["loss"] == "full"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model.name=./nowhere"], "model.name=./nowhere"),
        (["--strategy", "zer2"], "--strategy=zer2: did you mean zero2"),
        (["--strategy", "ddp"], "--strategy=ddp: does not go with --gpus=1"),
        (["--loss", "ful"], "--loss=ful: did you mean full?"),
        (["method=full-moe"], "method=full-moe: "),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    arguments: list[str], told: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, *arguments) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("error: ") and told in complaint


def test_a_model_without_config_is_one_line(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(recipe, f"model.name={tmp_path / 'empty'}") == 2
    assert "its config.json cannot be had" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_measuring_needs_a_gpu(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--measure") == 2
    assert "--measure: needs a CUDA device" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "goat"])
def test_the_peak_that_was_measured_on_an_h100(
    method: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A committed row of `goat bench train-step`: 16 layers of Llama-2-7B's shapes, eager."""
    rows = json.loads((RESULTS / "train_step.json").read_text())
    wanted = next(
        row["peak_gib"] for row in rows
        if row["method"] == method and row["shape"] == "llama-2-7b" and row["layers"] == 16 and "H100" in row["device"] and row["r"] == 32
        and (row["batch"], row["length"], row["num_experts"], row["dropout"]) == (4, 1024, 8, 0.0) and not row["compiled"] and not row["cuda_graph"]
    )  # fmt: skip
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 16, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = [
        "method.r=32",
        "training.batch_size=4",
        "training.bf16=true",
        "model.dtype=bfloat16",
        f"model.name={tmp_path}",
    ]
    assert run(recipe, f"method={method}", *settings, "--length", "1024", "--loss", "full", "--json") == 0
    found = json.loads(capsys.readouterr().out)["parts"]["single"]["peak"] / 2**30
    assert found == pytest.approx(wanted, rel=0.1)
