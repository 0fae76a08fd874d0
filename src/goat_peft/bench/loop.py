"""A mixture of LoRA experts as it is usually written, a Python loop over experts: what the fused operator is measured against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoopLinear(nn.Module):
    """`y = W0 x + s sum_i w_i B_i A_i x`, gathering each expert's tokens in turn, which waits for the device once per expert."""

    def __init__(self, base: nn.Linear, r: int, num_experts: int, top_k: int, scale: float) -> None:
        super().__init__()
        self.base, self.top_k, self.scale = base, top_k, scale
        rank, device = r // num_experts, base.weight.device
        self.router = nn.Linear(base.in_features, num_experts, bias=False, device=device)
        self.A = nn.ModuleList(nn.Linear(base.in_features, rank, bias=False, device=device) for _ in range(num_experts))
        self.B = nn.ModuleList(
            nn.Linear(rank, base.out_features, bias=False, device=device) for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., n), output (..., m)."""
        result = self.base(x)
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.router(tokens), dim=-1, dtype=torch.float32), self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(result.dtype)
        added = torch.zeros(tokens.shape[0], result.shape[-1], dtype=result.dtype, device=x.device)
        for i, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            token, slot = torch.where(chosen == i)
            expert = B(A(tokens[token])) * self.scale
            added = added.index_add(0, token, (expert * weights[token, slot, None]).to(added.dtype))
        return result + added.reshape(result.shape)


def add_loop_experts(model: nn.Module, names: tuple[str, ...], r: int, num_experts: int, top_k: int) -> nn.Module:
    """Replace the linears whose last name is in `names`; everything else is frozen."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(parent, name, LoopLinear(child, r, num_experts, top_k, scale=2.0))
    return model
