"""Full fine-tuning of a mixture of full-rank experts, upcycled from the base weight."""

from __future__ import annotations

from typing import Literal

import psutil
import torch
from peft import TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..ops.routers import topk_weights_autograd
from ..recipes.schema import MethodOptions
from .base import FULL_RATES, Method, register, train_whole

_BYTES_PER_PARAMETER = 16  # float32 weight, gradient, and AdamW's two moments


class FullMoeOptions(MethodOptions):
    """How many copies of each weight, and how many of them a token uses."""

    name: Literal["full-moe"] = "full-moe"
    num_experts: PositiveInt = Field(8, description="experts E, each a copy of the base weight at the start")
    top_k: PositiveInt = Field(2, description="experts that each token uses")

    @model_validator(mode="after")
    def _k_fits(self) -> FullMoeOptions:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k}: must be from 1 to num_experts={self.num_experts}")
        return self


class FullExperts(nn.Module):
    """`y = sum_i w_i(x) (W_i x + b_i)`, W_i and b_i copies of a linear's; the router is that of the LoRA mixtures: float32, no bias, top-k.

    Weights sum to 1, so that the model starts as the base.
    """

    def __init__(self, base: nn.Linear, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.top_k = base.in_features, base.out_features, top_k
        self.weight = nn.Parameter(base.weight.detach().repeat(num_experts, 1, 1))
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().repeat(num_experts, 1))
        self.router = nn.Parameter(torch.empty(num_experts, base.in_features, device=base.weight.device))
        nn.init.kaiming_uniform_(self.router, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Each expert computes for the tokens routed to it; x (..., n) to (..., m)."""
        tokens = x.reshape(-1, self.in_features)
        with torch.autocast(device_type=x.device.type, enabled=False):
            weights = topk_weights_autograd(F.linear(tokens.float(), self.router.float()), self.top_k)
        output = None
        for i in range(len(self.weight)):
            rows = weights[:, i].nonzero()[:, 0]
            part = F.linear(tokens[rows], self.weight[i], None if self.bias is None else self.bias[i])
            output = part.new_zeros(len(tokens), self.out_features) if output is None else output
            output = output.index_add(0, rows, part * weights[rows, i, None].to(part.dtype))
        return output.reshape(*x.shape[:-1], self.out_features)  # type: ignore[union-attr]


def upcycled_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears to upcycle: all but the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not set(name.split(".")) & set(SEQ_CLS_HEAD_NAMES)
    }


def check_memory(model: nn.Module, linears: dict[str, nn.Linear], num_experts: int) -> None:
    """Raise `UserError` if weights, gradients and optimiser state of the mixture would not fit the device."""
    copied = sum(parameter.numel() for linear in linears.values() for parameter in linear.parameters())
    needed = _BYTES_PER_PARAMETER * (sum(p.numel() for p in model.parameters()) + copied * (num_experts - 1))
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"method.num_experts={num_experts}: full-rank experts need about {needed / 2**30:.1f} GiB to train, {free / 2**30:.1f} GiB are free; "
            "use fewer experts, a smaller model, or a method with low-rank experts such as molora"
        )


def build(model: nn.Module, options: FullMoeOptions, task_type: TaskType | None) -> nn.Module:
    """Replace each linear but the head by its experts; every parameter trains in float32 (autocast: `training.bf16`)."""
    linears = upcycled_linears(model)
    check_memory(model, linears, options.num_experts)
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, FullExperts(linear, options.num_experts, options.top_k))
    return train_whole(model)


register(
    Method(
        name="full-moe",
        description="full-rank experts copied from each weight, top-2 of 8; for small models",
        source="Komatsuzaki et al., ICLR 2023, arXiv 2212.05055, as in arXiv 2502.16894",
        options=FullMoeOptions,
        build=build,
        learning_rate=2e-5,
        learning_rates=FULL_RATES,
        saves_adapter=False,
        writes_base=True,
        changes_modules=True,
    )
)
