"""Spectra, segments and movement against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLayer
from goat_peft.adapter.initialization import segment_factors
from goat_peft.view.weights import SPECTRUM_POINTS, expert_states, spectrum

OUT, IN, EXPERTS = 24, 40, 4


def layer(**fields: object) -> GoatLayer:
    """One adapted linear of 40 inputs and 24 outputs, eight ranks on four experts."""
    torch.manual_seed(0)
    config = GoatConfig(**({"r": 8, "num_experts": EXPERTS, "target_modules": ["0"], "scaling": 3.0} | fields))
    model = get_peft_model(nn.Sequential(nn.Linear(IN, OUT, bias=False)), config)
    return next(module for module in model.modules() if isinstance(module, GoatLayer))


def test_spectrum_is_the_base_weight_s() -> None:
    weight = torch.randn(300, 700)
    exact = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    found = spectrum(weight)
    assert found.count == 300 and len(found.at) == SPECTRUM_POINTS
    assert found.at[0] == 0 and found.at[-1] == 299 and sorted(set(found.at)) == found.at
    np.testing.assert_allclose(found.values, exact[found.at], rtol=1e-4)
    few = spectrum(weight[:20])
    assert few.at == list(range(20)) and len(few.values) == 20


@pytest.mark.parametrize("kind", ["goat", "principal", "minor"])
@pytest.mark.parametrize("expert_scaling", ["uniform", "singular"])
def test_movement_is_the_distance_from_factors_computed_again(kind: str, expert_scaling: str) -> None:
    """The start comes from the base weight by `initialization`, products are dense; signs of singular vectors drop out of the product."""
    adapted = layer(init_weights=kind, expert_scaling=expert_scaling)
    config = adapted.configs["default"]
    start = segment_factors(adapted.base_weight(), config)
    singular = torch.linalg.svdvals(adapted.base_weight().double())
    torch.manual_seed(1)
    with torch.no_grad():
        adapted.goat_A["default"] += 0.3 * torch.randn(8, IN)
        adapted.goat_B["default"][:, 2:] += 0.2 * torch.randn(OUT, 6)  # expert 1 moves in A alone
    A, B = adapted.goat_A["default"].double(), adapted.goat_B["default"].double()
    states = expert_states(adapted)
    for i, state in enumerate(states):
        rows = slice(2 * i, 2 * i + 2)
        before, now = start.B[:, rows] @ start.A[rows], B[:, rows] @ A[rows]
        assert state.moved_product == pytest.approx(((now - before).norm() / before.norm()).item(), rel=1e-4)
        assert state.size == pytest.approx(
            (start.scale[i] * now.norm() / adapted.base_weight().norm()).item(), rel=1e-4
        )
        assert state.moved_A == pytest.approx(((A - start.A)[rows].norm() / start.A[rows].norm()).item(), rel=1e-4)
        assert state.start is not None and state.width == 2
        assert state.sigma == pytest.approx(singular[state.start : state.start + 2].sum().item(), rel=1e-4)
    assert states[0].moved_B == 0 and states[1].moved_B is not None and states[1].moved_B > 0
    assert [state.start for state in states] == {
        "goat": [0, 6, 12, 18],
        "principal": [0, 2, 4, 6],
        "minor": [22, 20, 18, 16],
    }[kind]


def test_untrained_experts_have_not_moved() -> None:
    for state in expert_states(layer()):
        assert state.moved_A == state.moved_B == state.moved_product == 0


def test_random_segments_have_singular_values_but_no_known_place() -> None:
    adapted = layer(init_weights="random")
    singular = torch.linalg.svdvals(adapted.base_weight().double())
    pairs = [(singular[i] + singular[i + 1]).item() for i in range(0, OUT, 2)]
    for state in expert_states(adapted):
        assert state.start is None and state.moved_product == 0
        assert min(abs(state.sigma - pair) for pair in pairs) < 1e-4


def test_experts_that_start_at_random_have_no_distance() -> None:
    adapted = layer(init_weights="lora")
    assert [(s.start, s.sigma, s.moved_A, s.moved_product, s.size) for s in expert_states(adapted)] == [
        (None, None, None, None, 0.0)
    ] * EXPERTS
