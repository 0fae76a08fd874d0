"""The alignment measurement against what an SGD step really does to a weight."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from goat_peft import GoatConfig
from goat_peft.compare.alignment import Alignment, measure, watched

RATE = 1e-6


class Small(nn.Module):
    """One linear in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, X: Tensor) -> Tensor:
        return self.lin(X)


def adapted(init: str) -> nn.Module:
    torch.manual_seed(0)
    config = GoatConfig(r=4, num_experts=2, top_k=2, init_weights=init, target_modules=["lin"])
    return get_peft_model(Small(), config)


@pytest.mark.parametrize("init", ["goat", "lora"])
def test_equivalent_gradient_is_what_a_small_step_moves_the_expert_by(init: str) -> None:
    model = adapted(init)
    layer = model.base_model.model.lin
    x, weight = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    with watched(model) as seen:
        (model(x) * weight).sum().backward()
    found = measure(seen, eta=1.0)["expert"]

    def products() -> list[Tensor]:
        A, B, s = layer.goat_A["default"], layer.goat_B["default"], layer.goat_scale["default"]
        return [(s[i] * B[:, 2 * i : 2 * i + 2] @ A[2 * i : 2 * i + 2]).detach().clone() for i in range(2)]

    shares = torch.softmax(x @ layer.goat_router["default"].T, -1).detach()
    before = products()
    with torch.no_grad():
        for name in ("goat_A", "goat_B"):
            getattr(layer, name)["default"] -= RATE * getattr(layer, name)["default"].grad
    expected = Alignment()
    for i, (new, old) in enumerate(zip(products(), before, strict=True)):
        expected.add((old - new) / RATE, (weight * shares[:, i : i + 1]).T @ x)
    for key, value in expected.figures(1.0).items():
        assert found[key] == pytest.approx(value, rel=1e-3), key


def test_figures_of_the_gradient_itself_and_of_none() -> None:
    same, far = Alignment(), Alignment()
    g = torch.randn(3, 4)
    same.add(2 * g, g)
    assert same.figures(2.0) == pytest.approx({"distance": 0.0, "cosine": 1.0, "projection": 1.0}, abs=1e-5)
    far.add(-g, g)
    assert far.figures(1.0) == pytest.approx({"distance": 2.0, "cosine": -1.0, "projection": -1.0}, abs=1e-5)


def test_measuring_without_a_backward_says_so() -> None:
    model = adapted("goat")
    with watched(model) as seen, pytest.raises(ValueError, match="after loss.backward"):
        model(torch.randn(2, 6, dtype=torch.float64))
        measure(seen, 1.0)
