"""One expert on a segment is the single-adapter method of that segment."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from goat_peft import GoatConfig

STEPS, RATE = 6, 0.05


class Two(nn.Module):
    """Two linears in float64 with a bend between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16, dtype=torch.float64)
        self.second = nn.Linear(16, 8, dtype=torch.float64)

    def forward(self, X: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(X)))


def trajectory(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Outputs after each of a few SGD steps, (STEPS + 1, tokens, 8)."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    outputs = [model(x).detach()]
    for _ in range(STEPS):
        (model(x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        outputs.append(model(x).detach())
    return torch.stack(outputs)


def test_one_principal_expert_follows_pefts_pissa() -> None:
    torch.manual_seed(0)
    base = Two().float()  # PEFT's PiSSA takes no float64
    x, target = torch.randn(20, 12), torch.randn(20, 8)
    targets = ["first", "second"]
    lora = LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=targets)
    theirs = get_peft_model(copy.deepcopy(base), lora)
    ours = get_peft_model(
        copy.deepcopy(base), GoatConfig.from_preset("pissa", r=4, lora_alpha=8, target_modules=targets)
    )
    expected, found = trajectory(theirs, x, target), trajectory(ours, x, target)
    assert (expected[-1] - expected[0]).abs().max() > 0.05  # it moved
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_one_minor_expert_holds_the_smallest_triplets() -> None:
    torch.manual_seed(0)
    model = get_peft_model(Two(), GoatConfig.from_preset("milora", r=4, lora_alpha=8, target_modules=["first"]))
    layer = model.base_model.model.first
    product = layer.goat_scale["default"][0] * layer.goat_B["default"] @ layer.goat_A["default"]
    U, S, V = torch.linalg.svd(layer.base_layer.weight)
    torch.testing.assert_close(product, U[:, 8:12] @ torch.diag(S[8:]) @ V[8:12])
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
