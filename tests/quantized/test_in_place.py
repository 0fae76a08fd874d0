"""The operator on top of outputs that bases computed themselves, on every path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goat_peft.ops import Experts, Settings, routed_linears, use_path
from goat_peft.ops.paths import HAS_TRITON

PATHS = ["torch", pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"))]


def group(
    seed: int, outputs: list[int], n: int = 24, r: int = 8, num_experts: int = 4
) -> tuple[Tensor, list[Experts], list[Tensor]]:
    torch.manual_seed(seed)
    members = [
        Experts(
            *(torch.randn(shape).requires_grad_(grad) for shape, grad in (
                ((r, n), True), ((m, r), True), ((num_experts, n), True), ((num_experts,), False), ((r, n), False), ((m, r), False)))
        )
        for m in outputs
    ]  # fmt: skip
    return torch.randn(2, 19, n).requires_grad_(), members, [torch.randn(38, m).requires_grad_() for m in outputs]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("outputs", [[16], [16, 20, 12]])
def test_sum_and_gradients(path: str, outputs: list[int]) -> None:
    found = []
    for in_place in (True, False):
        x, members, own = group(0, outputs)
        below = [tensor * 1 for tensor in own]  # no leaves, as a base's outputs are none
        with use_path(path):
            results, statistics = routed_linears(x, members, Settings(2, 0.0, True), below=below if in_place else None)
        if in_place:
            assert all(r.data_ptr() == b.data_ptr() for r, b in zip(results, below, strict=True))
        else:
            results = [added + b.view(added.shape) for added, b in zip(results, below, strict=True)]
        loss = (
            sum((result * (i + 1)).square().sum() for i, result in enumerate(results))
            + statistics.sum(1)[:, :4].square().sum()
        )
        leaves = [x, *own, *(tensor for e in members for tensor in (e.A, e.B, e.router))]
        found.append([*results, statistics, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [5, 38])
def test_without_gradients(path: str, tokens: int) -> None:
    x, members, own = group(1, [16, 20])
    x, own = x.detach().reshape(38, -1)[:tokens], [tensor.detach()[:tokens] for tensor in own]
    with torch.no_grad(), use_path(path):
        added, _ = routed_linears(x, members, Settings(2, 0.0, False))
        wanted = [a + b for a, b in zip(added, own, strict=True)]
        results, _ = routed_linears(x, members, Settings(2, 0.0, False), below=[tensor.clone() for tensor in own])
    for result, want in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-4)
