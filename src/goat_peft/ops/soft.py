"""The operator with any router of `routers`, in plain torch and by autograd, on any device.

Costs one thin product more than the fast paths and keeps its intermediates for the backward; the presets that need it are baselines and ablations.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Experts
from .dense import statistics_rows
from .paths import autocasts
from .routers import routing_weights


@dataclass(frozen=True)
class SoftSettings:
    """How to route: the router's name, its k or p, the first `shared_experts` experts that every token uses, dropout, statistics."""

    router: str
    top_k: int
    top_p: float
    shared_experts: int
    dropout: float
    collect: bool


class _CountedSum(torch.autograd.Function):
    """Sum of rows (tokens, c) over the tokens that count, as (1, c).

    The mask is not kept as a saved tensor: a checkpoint's second forward knows no mask, and that of the first must count.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor | None) -> Tensor:
        ctx.mask, ctx.tokens = mask, rows.shape[0]
        return rows.sum(0, keepdim=True) if mask is None else mask.to(rows.dtype)[None] @ rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.expand(ctx.tokens, -1) if ctx.mask is None else ctx.mask.to(grad.dtype)[:, None] * grad, None


def routed_softly(
    x: Tensor,
    experts: Experts,
    settings: SoftSettings,
    threshold: Tensor | None = None,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`sum_i s_i w_i(x) B_i A_i x - sum_i s_i e_i B0_i A0_i x`, and statistics (1, 1, 2 R + 2) as `routed_linears` gives them, over the R routed experts.

    x (..., n); router (R, n), R = E - shared_experts; threshold (n + 1,) holds u, then b. A shared expert has weight 1. `e_i` is the weight to expect from
    logits without order: 1 for a shared expert, 1/R for a routed one, so that the residual of Theorem 3.4 keeps the expected initial output.
    Computes in x's dtype, routing in float32 at least.
    """
    tokens = x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext():
        wide = tokens.to(torch.promote_types(x.dtype, torch.float32))
        logits = F.linear(wide, experts.router.to(wide.dtype))
        cut = None if threshold is None else wide @ threshold[:-1].to(wide.dtype) + threshold[-1].to(wide.dtype)
        routed = routing_weights(logits, settings.router, settings.top_k, settings.top_p, cut)
        weights = F.pad(routed, (settings.shared_experts, 0), value=1.0)
        output = _mixed(tokens, experts, weights, settings)
        rows = statistics_rows(logits, routed.detach())
        statistics = _CountedSum.apply(rows, None if token_mask is None else token_mask.reshape(-1))[None]
    return output.reshape(*x.shape[:-1], output.shape[-1]), statistics if settings.collect else None


def _mixed(tokens: Tensor, experts: Experts, weights: Tensor, settings: SoftSettings) -> Tensor:
    """Experts and residual, mixed by weights (tokens, E)."""
    dtype, scale = tokens.dtype, experts.scale
    rank = experts.A.shape[0] // len(scale)
    gate = (weights * scale.to(weights.dtype)).to(dtype).repeat_interleave(rank, dim=-1)
    dropped = F.dropout(tokens, settings.dropout)
    output = F.linear(F.linear(dropped, experts.A.to(dtype)) * gate, experts.B.to(dtype))
    if experts.residual_A is None or experts.residual_B is None:
        return output
    expected = torch.full_like(scale, 1.0 / experts.num_experts)
    expected[: settings.shared_experts] = 1.0
    fixed = F.linear(tokens, experts.residual_A.to(dtype)) * (scale * expected).to(dtype).repeat_interleave(rank)
    return output - F.linear(fixed, experts.residual_B.to(dtype))
