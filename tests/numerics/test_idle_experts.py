"""Experts that no token reaches, and batches without a token that counts: gradients are zero there, never NaN, on every path."""

from __future__ import annotations

import pytest
import torch
from tiny import adapted, token_batch

from goat_peft.ops import routed_experts, use_path

TOKENS, N, M, EXPERTS, RANK, TOP_K = 40, 24, 16, 4, 2, 2
IDLE = 3


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Positive inputs, and a router that scores the idle expert far below the others."""
    draw = torch.Generator().manual_seed(0)
    found = {
        "x": torch.rand(TOKENS, N, generator=draw),
        "A": torch.randn(EXPERTS * RANK, N, generator=draw),
        "B": torch.randn(M, EXPERTS * RANK, generator=draw),
        "router": torch.randn(EXPERTS, N, generator=draw),
    }
    found["router"][IDLE] = -50.0
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in found.items()}


def run(
    path: str, given: dict[str, torch.Tensor], mask: torch.Tensor | None, residual: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    frozen = (given["A"].detach().clone(), given["B"].detach().clone()) if residual else (None, None)
    with use_path(path):
        output, statistics = routed_experts(*given.values(), torch.full((EXPERTS,), 2.0), *frozen, TOP_K, mask)
    return output, statistics


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("path", ["torch", "triton"])
def test_an_expert_that_never_fires_gets_zero_gradients(path: str, residual: bool) -> None:
    given = tensors()
    output, statistics = run(path, given, None, residual)
    assert statistics[EXPERTS + IDLE] == 0 and statistics[EXPERTS : 2 * EXPERTS].sum() == TOKENS * TOP_K
    (output.square().sum() + statistics[:EXPERTS].sum()).backward()
    own = slice(IDLE * RANK, (IDLE + 1) * RANK)
    for name, part in (("A", given["A"].grad[own]), ("B", given["B"].grad[:, own])):
        assert torch.equal(part, torch.zeros_like(part)), name
    for name, tensor in given.items():
        assert tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_a_batch_without_a_token_that_counts_has_empty_statistics_and_finite_gradients(path: str) -> None:
    given = tensors()
    output, statistics = run(path, given, torch.zeros(TOKENS, dtype=torch.bool), True)
    assert torch.equal(statistics, torch.zeros_like(statistics)) and output.isfinite().all()
    statistics[:EXPERTS].sum().backward(retain_graph=True)
    for name, tensor in given.items():
        assert torch.equal(tensor.grad, torch.zeros_like(tensor)), name
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in given.values())


SOFT = [{"router": "threshold"}, {"router": "top_p"}, {"shared_experts": 1}]  # torch alone


@pytest.mark.parametrize(
    ("path", "overrides"), [("torch", {}), ("triton", {}), *(("torch", soft) for soft in SOFT)], ids=str
)
def test_padding_alone_adds_no_balance_loss(path: str, overrides: dict) -> None:
    model = adapted(**overrides).train()
    batch = token_batch(rows=2, length=6)
    with use_path(path):
        model(input_ids=batch["input_ids"], attention_mask=torch.zeros_like(batch["input_ids"]))
        aux = model.get_aux_loss()
        assert aux == 0
        aux.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
