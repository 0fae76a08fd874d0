"""The balance loss and its gradient computed outside the adapter: from each layer's input, by the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from goat_peft.adapter import GoatLinear
from goat_peft.ops.reference import balance_loss_reference


def hand_losses(model: nn.Module, batch: dict[str, Tensor], adapter: str = "default") -> tuple[Tensor, Tensor]:
    """Task loss and balance loss without coefficient of one batch, both with a graph; the model is left in eval mode.

    In eval mode the model's loss is the task's alone; the balance loss is rebuilt from what each adapted linear reads.
    """
    layers = [module for module in model.modules() if isinstance(module, GoatLinear) and adapter in module.goat_A]
    seen: list[tuple[GoatLinear, Tensor]] = []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append((module, args[0]))) for layer in layers]
    model.eval()
    task = model(**batch).loss
    for handle in handles:
        handle.remove()
    values = []
    for layer, x in seen:
        mask = batch.get("attention_mask")
        tokens = x[mask.bool()] if mask is not None and x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])
        values.append(balance_loss_reference(tokens @ layer.goat_router[adapter].T, layer.configs[adapter].top_k))
    assert len(values) == len(layers) > 0
    stacked = torch.stack(values)
    return task, stacked.sum() if layers[0].configs[adapter].router_aux_loss_reduction == "sum" else stacked.mean()


def hand_gradients(
    model: nn.Module, batches: list[dict[str, Any]], task_shares: list[float], aux_shares: list[float]
) -> dict[str, Tensor]:
    """Adapter gradients of `sum_i task_share_i * task_i + aux_share_i * coefficient * L_b,i`, by name."""
    parameters = {name: p for name, p in model.named_parameters() if "goat_" in name and p.requires_grad}
    coefficient = model.peft_config["default"].router_aux_loss_coef
    total: Tensor | float = 0.0
    for batch, task_share, aux_share in zip(batches, task_shares, aux_shares, strict=True):
        task, aux = hand_losses(model, batch)
        total = total + task_share * task + aux_share * coefficient * aux
    found = torch.autograd.grad(total, list(parameters.values()))
    return {name: gradient.clone() for name, gradient in zip(parameters, found, strict=True)}
