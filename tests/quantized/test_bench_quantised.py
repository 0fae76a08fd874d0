"""`goat bench quantised`, at a size that a CPU takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantised_bases import KINDS
from transformers import LlamaConfig

from goat_peft.bench import quantised
from goat_peft.bench.workloads import SHAPES


@pytest.mark.parametrize("kind", KINDS[:1])
def test_rows_compare_with_lora_on_the_same_base(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4, vocab_size=97)
    monkeypatch.setitem(SHAPES, "smollm2-135m", small)
    file = tmp_path / "rows.json"
    options = [
        "--shape",
        "smollm2-135m",
        "--layers",
        "1",
        "--sizes",
        "1x8",
        "--repeats",
        "1",
        "--warmup",
        "1",
        "--rank",
        "8",
    ]
    quantised.main([*options, "--device", "cpu", "--kinds", kind, "--methods", "lora,goat", "--results", str(file)])
    lora, goat = json.loads(file.read_text())
    assert (lora["method"], goat["method"]) == ("lora", "goat") and lora["base"] == goat["base"] == kind
    assert lora["over_lora"] == 1 and goat["over_lora"] == pytest.approx(goat["step_ms"] / lora["step_ms"])
    assert goat["versions"]["bitsandbytes"] and goat["command"]
