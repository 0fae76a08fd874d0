"""What each page's Python blocks find when they start: the objects that its text speaks of, tiny; and hub names replaced by tiny models.

A page that needs nothing has no entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from goat_peft import GoatConfig, initialize_together


@dataclass
class Setting:
    """Names the blocks may use, and (old, new) texts put into them; each old text must be there."""

    names: dict[str, Any] = field(default_factory=dict)
    replaced: list[tuple[str, str]] = field(default_factory=list)


def readme(bert: Path, llama: Path) -> Setting:
    """The ten lines on a tiny language model."""
    return Setting(replaced=[("HuggingFaceTB/SmolLM2-135M", str(llama))])


def extending(bert: Path, llama: Path) -> Setting:
    """A tokenizer."""
    return Setting(replaced=[("sentence-transformers/all-MiniLM-L6-v2", str(bert))])


def view(bert: Path, llama: Path) -> Setting:
    """A classifier with an adapter, and a batch."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(bert)
    model = get_peft_model(base, GoatConfig(r=8, num_experts=4, top_k=2, task_type="SEQ_CLS"))
    batch = AutoTokenizer.from_pretrained(bert)(["the film is good", "awful"], padding=True, return_tensors="pt")
    return Setting({"model": model, "batch": batch})


def benchmarks(bert: Path, llama: Path) -> Setting:
    """Rows of HumanEval's form."""
    row = {
        "task_id": "one",
        "prompt": "def same(x):\n",
        "test": "def check(candidate):\n    assert candidate(3) == 3\n",
        "entry_point": "same",
        "canonical_solution": "    return x\n",
    }
    return Setting({"rows": [row]}, [('[["    return x\\n"], ...]', '[["    return x\\n"]]')])


def multi_gpu(bert: Path, llama: Path) -> Setting:
    """A base and an optimizer on one CPU."""
    import accelerate
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    base = AutoModelForCausalLM.from_pretrained(llama)
    names = {
        "Accelerator": accelerate.Accelerator,
        "DistributedDataParallelKwargs": accelerate.DistributedDataParallelKwargs,
        "torch": torch,
        "get_peft_model": get_peft_model,
        "GoatConfig": GoatConfig,
        "initialize_together": initialize_together,
        "base": base,
        "optimizer": torch.optim.AdamW(base.parameters()),
    }
    return Setting(names, [("GoatConfig(...)", "GoatConfig(r=8)"), ('autocast("cuda"', 'autocast("cpu"')])


SETTINGS: dict[str, Callable[[Path, Path], Setting]] = {
    "README.md": readme,
    "docs/view.md": view,
    "docs/extending.md": extending,
    "docs/benchmarks.md": benchmarks,
    "docs/multi-gpu.md": multi_gpu,
}
