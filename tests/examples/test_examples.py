"""Every file in `examples/` runs as it is on a tiny model, and what it saves is a GOAT adapter that loads and moved."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from goat_peft import GoatConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NEEDS = {"lightning_loop": "lightning"}
SLOW = ("grpo", "lightning_loop")  # both import much; the others check the same


def run_example(path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the file's `main` with these command-line arguments."""
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in EXAMPLES],
)
def test_an_example_trains_and_saves(
    path: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem], reason="an optional package that this example needs")
    output = tmp_path / "adapter"
    arguments = ["--model", str(tiny_llama_dir), "--steps", "2", "--output", str(output), "--cpu"]
    torch.manual_seed(0)
    run_example(path, arguments, monkeypatch)

    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    loaded = PeftModel.from_pretrained(base, output)
    assert isinstance(loaded.peft_config["default"], GoatConfig)
    experts = {name: value for name, value in loaded.state_dict().items() if "goat_A" in name}
    starts = {name: value for name, value in loaded.state_dict().items() if "goat_residual_A" in name}
    moved = [not torch.equal(a, b) for a, b in zip(experts.values(), starts.values(), strict=True)]
    assert experts and all(moved)  # the residual holds where each expert began


def test_every_promised_trainer_has_an_example() -> None:
    assert {path.stem for path in EXAMPLES} == {"sft", "dpo", "grpo", "accelerate_loop", "lightning_loop"}
