"""Which experts each token goes to: the routing weights of single tokens, of which a forward keeps only sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goat_peft.ops.routers import routing_weights

from .layer import GoatLayer, Linear


@dataclass(frozen=True)
class TokenRouting:
    """How one call of one layer routed its tokens; float32, on the CPU, in the shape of the layer's input without its last dimension.

    `weights` (..., E): the weights w_i of METHOD section 1, 0 for an expert that a token did not use, 1 for a shared expert.
    `probabilities` (..., R): the full softmax p over the R routed experts, E less the shared ones, which come first in `weights`.
    """

    weights: Tensor
    probabilities: Tensor


@contextmanager
def capture_routing(model: nn.Module, adapter_name: str = "default") -> Iterator[dict[str, list[TokenRouting]]]:
    """Inside the context, record how the layers of `model` route tokens with adapter `adapter_name`.

    Yields a dict, filled as forwards run: module name -> one `TokenRouting` a call. Layers where the adapter is disabled or not active record nothing.
    Logits are computed once more from each layer's input, in the precision of the layer's own, so the experts are those it uses (up to logits that
    are equal to the last bits). Padding is recorded too; rows of a mixed batch (`adapter_names`) are taken for `adapter_name` all alike.
    """
    found: dict[str, list[TokenRouting]] = {}
    with before_each_layer(model, partial(_record, adapter_name=adapter_name, found=found)):
        yield found


@contextmanager
def before_each_layer(model: nn.Module, hook: Callable[[Any, tuple[Any, ...]], None]) -> Iterator[None]:
    """Inside the context, call `hook(layer, args)` before each forward of each adapted linear."""
    handles = [layer.register_forward_pre_hook(hook) for layer in model.modules() if isinstance(layer, Linear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def token_routing(layer: GoatLayer, x: Tensor, adapter_name: str = "default") -> TokenRouting:
    """How `layer` routes the tokens of its input x (..., n)."""
    layer.initialize(adapter_name)
    config = layer.configs[adapter_name]
    seen = layer._cast_input_dtype(x, layer._compute_dtype(x, adapter_name))
    with torch.autocast(device_type=x.device.type, enabled=False):
        wide = seen.reshape(-1, seen.shape[-1]).to(torch.promote_types(seen.dtype, torch.float32))
        logits = F.linear(wide, layer.goat_router[adapter_name].to(wide.dtype))
        cut = None
        if adapter_name in layer.goat_threshold:
            threshold = layer.goat_threshold[adapter_name].to(wide.dtype)
            cut = wide @ threshold[:-1] + threshold[-1]
        routed = routing_weights(logits, config.router, config.top_k, config.top_p, cut)
        weights = F.pad(routed, (config.shared_experts, 0), value=1.0)
        probabilities = torch.softmax(logits, dim=-1)
    shape = x.shape[:-1]
    return TokenRouting(
        weights.reshape(*shape, -1).float().cpu(),
        probabilities.reshape(*shape, -1).float().cpu(),
    )


def _record(layer: Linear, args: tuple[Any, ...], *, adapter_name: str, found: dict[str, list[TokenRouting]]) -> None:
    if not layer.disable_adapters and adapter_name in layer.goat_A and adapter_name in layer.active_adapters:
        found.setdefault(layer.name, []).append(token_routing(layer, args[0], adapter_name))
