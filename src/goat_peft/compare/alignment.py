"""Gradient alignment: how far an adapter's equivalent gradient is from the full-rank gradient of the same weight, along training.

METHOD section 1. Expert i of a linear with factors B, A and scale s has the full-rank gradient `g = dL/dW_i = sum over tokens of w_i(x) dL/dy x^T`, what
a full-rank expert in its place would receive. An SGD step on its factors moves its weight `s B A` along `g~ = s^2 (B B^T g + g A^T A)` (Lemma 2.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..adapter.layer import GoatLayer
from ..ops.routers import routing_weights


@dataclass
class Alignment:
    """Comparison of g~ with `eta g`: squared norms and their inner product, summed over what is compared as one."""

    equivalent: float = 0.0
    full: float = 0.0
    inner: float = 0.0

    def add(self, equivalent: Tensor, full: Tensor) -> None:
        """Add one weight's pair (m, n)."""
        self.equivalent += equivalent.square().sum().item()
        self.full += full.square().sum().item()
        self.inner += (equivalent * full).sum().item()

    def figures(self, eta: float) -> dict[str, float]:
        """`distance` ||g~ - eta g|| / ||eta g||, `cosine`, and `projection` <g~, g> / (eta ||g||^2): 1 where g~ is as long along g as `eta g`."""
        wanted = eta * self.full**0.5
        distance = max(self.equivalent - 2 * eta * self.inner + wanted**2, 0.0) ** 0.5 / wanted
        return {
            "distance": distance,
            "cosine": self.inner / (self.equivalent * self.full) ** 0.5,
            "projection": self.inner / (eta * self.full),
        }


@dataclass
class _Seen:
    """Inputs (tokens, n) and output gradients (tokens, m) of one layer's forwards since the last reset."""

    inputs: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[GoatLayer, _Seen]]:
    """Inside, forward and backward of the adapted layers leave what `measure` needs."""
    seen: dict[GoatLayer, _Seen] = {module: _Seen() for module in model.modules() if isinstance(module, GoatLayer)}

    def remember(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            seen[layer].inputs.append(args[0].detach().reshape(-1, args[0].shape[-1]))
            output.register_hook(lambda grad: seen[layer].grads.append(grad.reshape(-1, grad.shape[-1])))

    handles = [layer.register_forward_hook(remember) for layer in seen]  # type: ignore[attr-defined]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure(seen: dict[GoatLayer, _Seen], eta: float, adapter: str = "default") -> dict[str, dict[str, float]]:
    """Figures of what the layers saw, norms taken over all layers together.

    `expert`: each expert's g~ against its own g, which routing weights already. `mixture`: the mean movement of the weight that tokens see, `sum_i
    mean(w_i) g~_i`, against the gradient `g = sum over tokens of dL/dy x^T` of one full-rank weight in the mixture's place.
    """
    expert, mixture = Alignment(), Alignment()
    for layer, own in seen.items():
        if len(own.inputs) != len(own.grads) or not own.inputs:
            raise ValueError(
                f"layer={layer.name}: saw {len(own.inputs)} forwards and {len(own.grads)} backwards; measure after loss.backward()."
            )
        x, grad = torch.cat(own.inputs), torch.cat(own.grads)
        experts, config = layer.experts(adapter), layer.configs[adapter]
        weights = routing_weights(
            x @ experts.router.T, config.router, config.top_k, config.top_p, _cut(layer, x, adapter)
        )
        rank, moved = experts.rank, x.new_zeros(grad.shape[1], x.shape[1])
        for i in range(experts.num_experts):
            rows = slice(i * rank, (i + 1) * rank)
            A, B = experts.A[rows], experts.B[:, rows]
            g = (grad * weights[:, i : i + 1]).T @ x
            equivalent = experts.scale[i] ** 2 * (B @ (B.T @ g) + (g @ A.T) @ A)
            expert.add(equivalent, g)
            moved += weights[:, i].mean() * equivalent
        mixture.add(moved, grad.T @ x)
    return {"expert": expert.figures(eta), "mixture": mixture.figures(eta)}


def _cut(layer: GoatLayer, x: Tensor, adapter: str) -> Tensor | None:
    threshold = layer.goat_threshold.get(adapter)
    return None if threshold is None else x @ threshold[:-1] + threshold[-1]


def follow(
    model: PeftModel, batches: list[dict[str, Tensor]], rate: float, measured: set[int], eta: float
) -> list[dict[str, Any]]:
    """Train with SGD, as the theory has it, a step per batch; measure before the steps in `measured` and, where it names it, after the last.

    Returns a point for each: step, loss, and the figures of `measure`.
    """
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    points = []
    for step, batch in enumerate([*batches, batches[0]]):
        last = step == len(batches)
        if last and step not in measured:
            break
        optimizer.zero_grad()
        if step in measured:
            with watched(model) as seen:
                loss = model(**batch).loss
                loss.backward()
            points.append({"step": step, "loss": loss.item(), **measure(seen, eta)})
        else:
            model(**batch).loss.backward()
        if not last:
            optimizer.step()
    return points
