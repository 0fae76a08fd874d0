"""What an adapted linear does on calibration data, in sums from which every linear stand-in for its experts can be judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import GoatLayer, GoatLinear
from ..adapter.capture import before_each_layer, token_routing


@dataclass
class LayerStatistics:
    """Sums over the tokens of one layer, padding left out; float64, on the layer's device.

    With `u = A x` (r) and `v = w(x)` repeated over each expert's d rows, times u: `weights` sum of w (E); `inputs` sum of `u u^T`, `mixed` sum of
    `v u^T`, `outputs` sum of `v v^T` (all r x r). For `S = [s_1 B_1 .. s_E B_E]` the experts give `S v`, and a linear map `S K u` in their place errs by
    `E ||S (v - K u)||^2 = trace(S^T S (outputs - mixed K^T - K mixed^T + K inputs K^T)) / tokens`.
    """

    tokens: int
    weights: Tensor
    inputs: Tensor
    mixed: Tensor
    outputs: Tensor

    @property
    def mean_weights(self) -> Tensor:
        """Mean routing weight of each expert (E)."""
        return self.weights / self.tokens


@contextmanager
def collect_statistics(model: nn.Module, adapter_name: str = "default") -> Iterator[dict[str, LayerStatistics]]:
    """Inside the context, add up the statistics of every adapted linear while `model` runs; module name -> sums."""
    found: dict[str, LayerStatistics] = {}
    with before_each_layer(model, partial(_add, adapter_name=adapter_name, found=found)):
        yield found


@torch.no_grad()
def _add(layer: GoatLinear, args: tuple[Any, ...], *, adapter_name: str, found: dict[str, LayerStatistics]) -> None:
    x = args[0]
    mask = layer.context.token_mask(x, layer.name)
    tokens = x.reshape(-1, x.shape[-1])
    if mask is not None:
        tokens = tokens[mask]
    if len(tokens) == 0:
        return
    seen = found.get(layer.name)
    if seen is None:
        seen = found[layer.name] = _empty(layer, adapter_name)
    experts, config = layer.experts(adapter_name), layer.configs[adapter_name]
    weights = token_routing(layer, tokens, adapter_name).weights.to(x.device, torch.float64)
    u = (tokens.to(experts.A.dtype) @ experts.A.T).double()
    v = weights.repeat_interleave(config.expert_rank, dim=1) * u
    seen.tokens += len(tokens)
    seen.weights += weights.sum(0)
    seen.inputs += u.T @ u
    seen.mixed += v.T @ u
    seen.outputs += v.T @ v


def _empty(layer: GoatLayer, adapter_name: str) -> LayerStatistics:
    config = layer.configs[adapter_name]
    zeros = partial(torch.zeros, dtype=torch.float64, device=layer.goat_A[adapter_name].device)
    square = (config.r, config.r)
    return LayerStatistics(0, zeros(config.num_experts), zeros(square), zeros(square), zeros(square))
