"""Left padding on a real model: are greedy texts the same alone and in batches of 16?

Run from the project's root: `python results/left_padding.py MODEL [DATA]`, MODEL a folder of SmolLM2-135M-Instruct, DATA the folder of
the local data sets (`../shared/data` when not given). Twelve real prompts of each of eight tasks for the model itself, four of
each for a GOAT adapter whose routers and factors were drawn at random. Writes `left-padding.json` beside this file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from goat_peft import GoatConfig, records
from goat_peft.recipes import load_task
from goat_peft.tasks import bind
from goat_peft.tasks.data import fill
from goat_peft.tasks.decoding import generate_texts, prompt_ids
from goat_peft.training import record

TASKS = {
    "boolq": "commonsense/boolq",
    "arc-challenge": "commonsense/ARC-Challenge",
    "piqa": "commonsense/piqa",
    "winogrande": "commonsense/winogrande",
    "gsm8k": "math/gsm8k",
    "svamp": "math/svamp",
    "aqua": "math/aqua",
    "mawps": "math/mawps",
}
BATCHES = (1, 16)


def prompts(data: Path, rows: int) -> list[str]:
    """The first rows' prompts of every task."""
    found = []
    for name, folder in TASKS.items():
        task = bind(load_task(name, [f"data.folder={data / folder}", f"data.test.limit={rows}"]))
        test: Dataset = task.load("test").named("test")
        found += fill(task.options.prompt, test, "task.prompt")
    return found


def with_experts(model: nn.Module) -> nn.Module:
    """Put a GOAT adapter on all linear layers and move everything in it away from its start."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, GoatConfig(r=32, num_experts=8, top_k=2, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            spread = 0.05 if "router" in name else 0.3 * parameter.std()
            parameter.data.add_(torch.randn_like(parameter) * spread)
    return adapted


def measure(name: str, model: nn.Module, tokenizer: Any, texts: list[str], tokens: int) -> dict[str, Any]:
    """Generate for all prompts with every batch size and compare."""
    found, seconds = [], []
    for size in BATCHES:
        own: dict[int, str] = {}
        begin = time.perf_counter()
        generate_texts(
            model,
            tokenizer,
            texts,
            max_new_tokens=tokens,
            batch_size=size,
            done=lambda places, written, own=own: own.update(zip(places, written, strict=True)),
        )
        seconds.append(round(time.perf_counter() - begin, 1))
        found.append([own[index] for index in range(len(texts))])
    lengths = [len(prompt_ids(tokenizer, text)) for text in texts]
    return {
        "name": name,
        "prompts": len(texts),
        "prompt_tokens": [min(lengths), max(lengths)],
        "new_tokens": tokens,
        "batch_sizes": list(BATCHES),
        "same_texts": sum(one == many for one, many in zip(*found, strict=True)),
        "different_texts_among_them": len(set(found[0])),
        "seconds": seconds,
    }


def main() -> None:
    """Measure both models and write the figures."""
    data = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("../shared/data")
    started = record.now()
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    tokenizer = bind(load_task("boolq")).load_processor(sys.argv[1], {})
    measurements = [measure("SmolLM2-135M-Instruct, float32", model, tokenizer, prompts(data, 12), 32)]
    adapted = with_experts(model)
    measurements.append(measure("the same with a GOAT adapter", adapted, tokenizer, prompts(data, 4), 12))
    result = {
        "run_info": {"created_at": started, "command": "left_padding.py MODEL"},
        "measurements": measurements,
        "meta_info": {"package_info": record.package_info(), "system_info": record.system_info()},
    }
    records.write_json(Path(__file__).parent / "left-padding.json", result)
    for row in measurements:
        sys.stdout.write(f"{row['name']}: {row['same_texts']} of {row['prompts']} the same\n")


if __name__ == "__main__":
    main()
