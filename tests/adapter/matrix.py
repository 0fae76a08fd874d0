"""The cases of PEFT's own matrix of custom models, for this method."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from tiny import MLP, adapted, seeded
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class ConvMLP(nn.Module):
    """An embedding and a Conv1D, GPT-2's transposed linear."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(100, 10)
        self.lin0 = Conv1D(16, 10)
        self.lin1 = nn.Linear(16, 12)

    def forward(self, X: Tensor) -> Tensor:
        tokens = self.emb(X.abs().long() % 100)
        return self.lin1(torch.relu(self.lin0(tokens)))


DENSE = {"top_k": 4}  # every expert active, so that every parameter gets a gradient
MATRIX = {
    "string": (MLP, {"target_modules": "lin0"}),
    "first": (MLP, {"target_modules": ["lin0"]}),
    "second": (MLP, {"target_modules": ["lin1"]}),
    "both": (MLP, {"target_modules": ["lin0", "lin1"]}),
    "with a trained module": (MLP, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    "dropout": (MLP, {"target_modules": ["lin0"], "lora_dropout": 0.1}),
    "eight experts": (MLP, {"target_modules": ["lin0"], "num_experts": 8, "top_k": 8}),
    "rslora": (MLP, {"target_modules": ["lin0"], "scaling": "rslora"}),
    "conv1d": (ConvMLP, {"target_modules": ["lin0"]}),
    "goat init": (MLP, {"target_modules": ["lin0", "lin1"], "init_weights": "goat"}),
}
IDENTITY = [name for name in MATRIX if name != "goat init"]
X = torch.arange(90).reshape(9, 10).float() / 30


def build(case: str, **overrides: Any) -> PeftModel:
    make, kwargs = MATRIX[case]
    return adapted(make, **({"init_weights": "lora", "scaling": 1.0} | DENSE | kwargs | overrides))


def base_of(case: str) -> nn.Module:
    return seeded(MATRIX[case][0])


def sgd(model: nn.Module, steps: int = 3, lr: float = 0.5) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X=X).log_softmax(-1)[:, 0].sum().backward()
        optimizer.step()
    model.eval()


def trains(name: str) -> bool:
    return "goat_" in name or "modules_to_save" in name
