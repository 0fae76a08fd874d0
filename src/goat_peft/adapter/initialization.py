"""How experts start: segments of the SVD, their scale, and the residual (METHOD section 1, Lemma 3.3, Theorems 3.4 and 3.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import GoatConfig

_TRIPLET_TOLERANCE = 1e-6


@dataclass
class Factors:
    """Initial factors of one linear: A (r, n), B (m, r), scale (E,). With a residual, its factors are A and B as they are here."""

    A: Tensor
    B: Tensor
    scale: Tensor


def theorem_scale(in_features: int, rank: int, eta: float = 1.0) -> float:
    """Theorem 3.5: `s = sqrt(3 n eta / rank)`, the s for which the mean of `s^2 g A^T A` over draws of a Kaiming-uniform A (variance `1/(3n)`) is `eta g`.

    It assumes B = 0. And it is not the s that minimises the error of a single draw: `A^T A` has rank `rank`, and
    `E ||s^2 g A^T A - eta g||^2` is least near `s^2 = 3 n eta / (n + rank + 1)`, about 3 where the theorem's s^2 is hundreds. Tests measure both.
    """
    return math.sqrt(3 * in_features * eta / rank)


def expert_scale(config: GoatConfig, in_features: int) -> float:
    """The scale s that `config.scaling` names, for a linear of `in_features` inputs; the rank that enters is the expert rank d."""
    rank = config.expert_rank
    if config.scaling == "paper":
        return theorem_scale(in_features, rank, config.eta)
    if config.scaling == "lora":
        return config.lora_alpha / rank
    if config.scaling == "rslora":
        return config.lora_alpha / math.sqrt(rank)
    return float(config.scaling)


def segment_starts(kind: str, smallest_dim: int, num_experts: int, rank: int) -> list[int]:
    """0-based index of the first singular triplet of each expert's segment; triplets are sorted from the largest.

    'goat': `j * floor(h / E)`; 'principal': `j d`; 'minor': `h - (j + 1) d`; 'random': `d * randint(0, h / d - 1)`, drawn anew for each expert.
    """
    if kind == "goat":
        step = smallest_dim // num_experts
        return [j * step for j in range(num_experts)]
    if kind == "principal":
        return [j * rank for j in range(num_experts)]
    if kind == "minor":
        return [smallest_dim - (j + 1) * rank for j in range(num_experts)]
    if kind == "random":
        return (rank * torch.randint(0, smallest_dim // rank, (num_experts,))).tolist()
    raise ValueError(f"init_weights={kind!r} names no segment; use goat, principal, minor or random.")


def check_rank_fits(config: GoatConfig, in_features: int, out_features: int, module: str) -> None:
    """Raise `ValueError` if the weight of `module` has too few singular triplets for its experts' segments; those of 'goat' may overlap."""
    smallest = min(in_features, out_features)
    if not config.uses_residual:
        return
    d, num_experts = config.expert_rank, config.num_experts
    needed = {"goat": smallest // num_experts * (num_experts - 1) + d, "random": d}.get(
        str(config.init_weights), config.r
    )
    if needed > smallest:
        raise ValueError(
            f"GoatConfig.r={config.r}: module '{module}' is {out_features} x {in_features} and has only {smallest} singular triplets, too few for "
            f"{num_experts} segments of {d}; use a smaller r, add it to exclude_modules, or set init_weights='lora'."
        )


def singular_triplets(weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Triplets number `chosen` (c,), counted from the largest, of the SVD of `weight` (m, n): U (m, c), S (c,), V^T (c, n) in float64.

    Through the eigenvectors of the smaller Gram matrix in float64, nine times as fast as an SVD on a GPU. Squaring loses half the digits of the
    smallest singular values, so the result is checked (`W v = s u`, orthonormal V) and an SVD is taken where the check fails.
    """
    if weight.device.type == "mps":  # has no float64
        weight = weight.cpu()
    chosen, repeats = torch.unique(chosen.to(weight.device), return_inverse=True)
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    U = vectors[:, vectors.shape[1] - 1 - chosen]
    SV = U.T @ wide
    S = torch.linalg.vector_norm(SV, dim=1)
    V = SV / S.clamp_min(torch.finfo(S.dtype).tiny)[:, None]
    if not _triplets_hold(wide, U, S, V):
        all_U, all_S, all_V = torch.linalg.svd(wide, full_matrices=False)
        U, S, V = all_U[:, chosen], all_S[chosen], all_V[chosen]
    U, S, V = U[:, repeats], S[repeats], V[repeats]
    return (U, S, V) if weight.shape[0] <= weight.shape[1] else (V.T, S, U.T)


def _triplets_hold(wide: Tensor, U: Tensor, S: Tensor, V: Tensor) -> bool:
    residual = torch.linalg.vector_norm(wide @ V.T - U * S, dim=0) / S.max().clamp_min(torch.finfo(S.dtype).tiny)
    error = (V @ V.T - torch.eye(len(S), dtype=S.dtype, device=S.device)).abs().max()
    return bool(residual.max() < _TRIPLET_TOLERANCE) and bool(error < _TRIPLET_TOLERANCE)


def segment_factors(weight: Tensor, config: GoatConfig) -> Factors:
    """Factors with `s_j B_j A_j = (1 / rho) U' S' V'^T` on each expert's segment of the SVD of `weight` (m, n).

    `B_j = sqrt(1 / (s_j rho)) U' S'^(1/2)` and `A_j = sqrt(1 / (s_j rho)) S'^(1/2) V'^T`, computed on the weight's device, in float64.

    Raises `ValueError` for a weight that is not finite.
    """
    if not weight.isfinite().all():
        raise ValueError(
            "the base weight holds NaN or infinity, which has no SVD; load the base anew, in a dtype that holds its values."
        )
    m, n = weight.shape
    rank, num_experts = config.expert_rank, config.num_experts
    starts = torch.tensor(segment_starts(str(config.init_weights), min(m, n), num_experts, rank), device=weight.device)
    triplets = (starts[:, None] + torch.arange(rank, device=weight.device)).reshape(-1)
    U, S, V = singular_triplets(weight, triplets)

    scale = torch.full((num_experts,), expert_scale(config, n), dtype=S.dtype, device=S.device)
    if config.expert_scaling == "singular":  # GOAT-s: s_i = s_1 sqrt(sigma_1 / sigma_i)
        sigma = S.reshape(num_experts, rank).sum(1)
        scale = scale * torch.sqrt(sigma[0] / sigma.clamp_min(torch.finfo(S.dtype).tiny))
    root = torch.sqrt(S / (scale.repeat_interleave(rank) * config.rho))
    return Factors(A=root[:, None] * V, B=U * root, scale=scale)


def plain_factors(m: int, n: int, config: GoatConfig, dtype: torch.dtype, device: torch.device) -> Factors:
    """Factors without an SVD: Kaiming-uniform A (variance `1/(3n)`), and B zero ('lora') or small and random (False)."""
    A = torch.empty(config.expert_rank if config.shared_A else config.r, n, dtype=dtype, device=device)
    B = torch.zeros(m, config.r, dtype=dtype, device=device)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    if config.init_weights is False:
        nn.init.normal_(B, std=0.02)
    scale = torch.full((config.num_experts,), expert_scale(config, n), dtype=dtype, device=device)
    return Factors(A, B, scale)
