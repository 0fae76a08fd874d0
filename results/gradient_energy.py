"""How much of the loss's gradient do the subspaces catch that adapters start in?

For each adapted linear with weight W (m, n) and gradient G = dL/dW of the pretrained model: the share `||G A^T||^2 / ||G||^2` for orthonormal A (8, n) from
several sources, summed over layers. What is chosen by a gradient is chosen on one half of the rows and judged on the other.

    python results/gradient_energy.py --minilm FOLDER --smollm2 FOLDER --data FOLDER    # FOLDER/glue, FOLDER/math: jsonl.gz

Writes `gradient-energy.json` beside this file. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from goat_peft import records
from goat_peft.bench.measure import environment

RANK, ROWS = 8, 256
TASKS = {
    "mrpc": ("minilm", "glue/mrpc/train.jsonl.gz", "{sentence1} {sentence2}", 32),
    "cola": ("minilm", "glue/cola/train.jsonl.gz", "{sentence}", 32),
    "mawps": ("smollm2", "math/mawps/train.jsonl.gz", "{question}\n#### {answer}", 16),
}


def batches(tokenizer: Any, path: Path, text: str, size: int) -> list[dict[str, Tensor]]:
    """The first `ROWS` rows as model inputs; every token of a text without a label counts in the loss."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(ROWS), strict=False)]
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        inputs = tokenizer(
            [text.format(**row) for row in part], padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        labels = (
            torch.tensor([row["label"] for row in part])
            if "label" in part[0]
            else inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        )
        found.append({**inputs, "labels": labels})
    return found


def gradient(model: nn.Module, linears: dict[str, nn.Linear], inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum over batches of the mean loss's gradient, by layer."""
    model.zero_grad()
    for batch in inputs:
        model(**batch).loss.backward()
    return {name: linear.weight.grad.clone() for name, linear in linears.items() if linear.weight.grad is not None}


def caught(G: Tensor, A: Tensor) -> float:
    """`||G A^T||^2` for orthonormal rows A."""
    return float((G @ A.T).square().sum())


def shares(weights: dict[str, Tensor], chosen_on: dict[str, Tensor], judged_on: dict[str, Tensor]) -> dict[str, float]:
    """Share of the squared norm, over all layers together, that each starting subspace catches."""
    sums: dict[str, float] = {}
    total = 0.0
    for name, W in weights.items():
        g, G = chosen_on[name], judged_on[name]
        total += float(G.square().sum())
        V = torch.linalg.svd(W, full_matrices=False)[2]
        own = torch.linalg.svd(g, full_matrices=False)[2]
        starts = {
            "random": torch.linalg.qr(torch.randn(W.shape[1], RANK))[0].T,
            "principal segment of W": V[:RANK],
            "O segments of W": V[torch.arange(RANK) * (len(V) // RANK)],
            "minor segment of W": V[-RANK:],
            "the triplets of W that catch most": V[(g @ V.T).square().sum(0).topk(RANK).indices],
            "the gradient's own triplets": own[:RANK],
            "the gradient's first triplet": own[:1],
        }
        for kind, A in starts.items():
            sums[kind] = sums.get(kind, 0.0) + caught(G, A)
    return {kind: value / total for kind, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("minilm", "smollm2", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    found = {}
    for task, (name, path, text, size) in TASKS.items():
        torch.manual_seed(0)
        folder = getattr(arguments, name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        kind = AutoModelForSequenceClassification if name == "minilm" else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        inputs = batches(tokenizer, arguments.data / path, text, size)
        linears = {
            n: m
            for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and n.rpartition(".")[2] not in ("classifier", "lm_head")
        }
        half = len(inputs) // 2
        first, second = gradient(model, linears, inputs[:half]), gradient(model, linears, inputs[half:])
        found[task] = shares({n: linears[n].weight.detach() for n in first if n in second}, first, second)
        for start, share in found[task].items():
            print(f"{task:6} {start:36} {share:.3f}", flush=True)
    about = {"rank": RANK, "rows": ROWS} | environment("cpu")
    records.write_json(Path(__file__).with_name("gradient-energy.json"), {"run_info": about, "shares": found})


if __name__ == "__main__":
    main()
