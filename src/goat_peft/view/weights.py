"""One adapted weight as the page shows it: its spectrum, each expert's segment, and how far each expert moved from its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import GoatLayer
from ..adapter.initialization import segment_starts

SPECTRUM_POINTS = 256


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a base weight, from the largest: `values[i]` is number `at[i]` (from 0) of `count`; all of them, or evenly spread ones."""

    count: int
    at: list[int]
    values: list[float]


@dataclass(frozen=True)
class ExpertState:
    """One expert of one weight.

    `start`: number (from 0) of the first singular triplet it started from, `width` of them; None where it did not start from the weight.
    `sigma`: sum of the singular values of its segment. `moved_A`, `moved_B`, `moved_product`: relative distance `||X - X_0|| / ||X_0||` (Frobenius) of
    A_i, B_i and B_i A_i from their start X_0; None where the adapter does not hold its start, or it is 0. `size`: `s_i ||B_i A_i|| / ||W_0||` now.
    """

    start: int | None
    width: int
    sigma: float | None
    moved_A: float | None
    moved_B: float | None
    moved_product: float | None
    size: float


@torch.no_grad()
def spectrum(weight: Tensor) -> Spectrum:
    """Singular values of `weight` (m, n)."""
    values = torch.linalg.svdvals(weight.float()).cpu()
    at = torch.linspace(0, len(values) - 1, min(len(values), SPECTRUM_POINTS)).round().long()
    return Spectrum(len(values), at.tolist(), values[at].tolist())


@torch.no_grad()
def expert_states(layer: GoatLayer, adapter_name: str = "default") -> list[ExpertState]:
    """Each expert's segment and movement, computed in float64 from the adapter's tensors.

    The start is what the adapter stores as its residual (METHOD section 1), bit for bit what training began with: an SVD done again could come back with
    other signs.
    """
    config, experts = layer.configs[adapter_name], layer.experts(adapter_name)
    rank, count = config.expert_rank, config.num_experts
    now = _split(experts.A, experts.B, count)
    scale = experts.scale.double().tolist()
    whole = torch.linalg.matrix_norm(layer.base_weight().double()).item()
    sizes = [s * product_norm(A, B) / whole for s, (A, B) in zip(scale, now, strict=True)]
    if experts.residual_A is None or experts.residual_B is None:
        return [ExpertState(None, rank, None, None, None, None, size) for size in sizes]
    starts: list[int] | list[None] = [None] * count
    if config.init_weights != "random":  # drawn anew for each expert and not stored
        starts = segment_starts(str(config.init_weights), min(layer.in_features, layer.out_features), count, rank)
    states = []
    begun = _split(experts.residual_A, experts.residual_B, count)
    for (A, B), (A0, B0), s, start, size in zip(now, begun, scale, starts, sizes, strict=True):
        moved = product_norm(torch.cat([A, -A0]), torch.cat([B, B0], dim=1))
        states.append(
            ExpertState(
                start,
                rank,
                # A's rows and B's columns of one triplet are orthogonal to the others', and s_i |b| |a| = sigma / rho
                s * config.rho * (A0.norm(dim=1) * B0.norm(dim=0)).sum().item(),
                _over((A - A0).norm().item(), A0.norm().item()),
                _over((B - B0).norm().item(), B0.norm().item()),
                _over(moved, product_norm(A0, B0)),
                size,
            )
        )
    return states


def product_norm(A: Tensor, B: Tensor) -> float:
    """`||B A||` (Frobenius) of A (d, n) and B (m, d), without forming the product: `||B A||^2 = trace(B^T B A A^T)`."""
    return ((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt().item()


def _split(A: Tensor, B: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """A (r, n) and B (m, r) as float64 pairs, one an expert."""
    return list(zip(A.double().chunk(count), B.double().chunk(count, dim=1), strict=True))


def _over(distance: float, start: float) -> float | None:
    """A distance relative to the start's norm; None for a start of nothing, as in a weight of lower rank than the segments reach."""
    return distance / start if start > 0 else None
