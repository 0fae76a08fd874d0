"""One adapted linear as two thin factors: the experts under fixed weights, less the residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import GoatLayer
from .statistics import LayerStatistics

WEIGHTINGS = ("mean", "regression")
RIDGE = 1e-4  # of the mean of the diagonal: directions that calibration hardly saw keep their mean weight


@dataclass(frozen=True)
class LinearFactors:
    """`B A` in place of a layer's experts and residual: A (R, n), B (m, R), float64.

    `error`: `E ||experts(x) - stand-in(x)||^2 / E ||experts(x)||^2` over the calibration tokens, before any compression.
    """

    A: Tensor
    B: Tensor
    error: float
    mean_weights: list[float]

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[0]


@torch.no_grad()
def linear_factors(
    layer: GoatLayer, seen: LayerStatistics, weighting: str, adapter_name: str = "default"
) -> LinearFactors:
    """The layer's stand-in, of rank at most 2r: `sum_i s_i c_i B_i A_i - (1/E) sum_i s_i B0_i A0_i`, or `S K A - (1/E) sum_i s_i B0_i A0_i`.

    Args:
        weighting: "mean" takes for c_i the mean routing weight (METHOD section 1 with w_i(x) replaced by its mean); "regression" the matrix K (r x r)
            of least squared error on the calibration tokens, `K = E[v u^T] E[u u^T]^-1`, of which the c_i are the diagonal ones.
    """
    config, experts = layer.configs[adapter_name], layer.experts(adapter_name)
    d, count = config.expert_rank, config.num_experts
    scale = experts.scale.double().repeat_interleave(d)
    A, S = experts.A.double(), experts.B.double() * scale
    M = S.T @ S
    mean = torch.diag(seen.mean_weights.repeat_interleave(d))
    if weighting == "mean":
        K = mean
    else:
        K = mean + torch.linalg.solve(_ridged(seen.inputs), (seen.mixed - mean @ seen.inputs).T).T
    left = seen.outputs - seen.mixed @ K.T - K @ seen.mixed.T + K @ seen.inputs @ K.T
    whole = (M * seen.outputs).sum().item()
    error = (M * left).sum().item() / whole if whole > 0 else 0.0
    B = S @ K
    if config.shared_A:  # the copies of the one A fold into it
        A, B = A[:d], B.reshape(len(B), count, d).sum(1)
    if experts.residual_A is not None and experts.residual_B is not None:
        A = torch.cat([A, experts.residual_A.double()])
        B = torch.cat([B, experts.residual_B.double() * scale / -count], dim=1)
    return LinearFactors(A, B, error, seen.mean_weights.tolist())


def compressed(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` factors of `B A` (m x n) in the Frobenius norm, by QR of the thin factors and an SVD of their R x R core.

    A (R, n), B (m, R) -> (rank, n), (m, rank), each carrying the square roots of the singular values; zero where B A has lower rank.
    """
    left, left_core = torch.linalg.qr(B)
    right, right_core = torch.linalg.qr(A.T)
    U, values, Vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = values[:rank].sqrt()
    found_A, found_B = root[:, None] * (Vh[:rank] @ right.T), (left @ U[:, :rank]) * root
    missing = rank - len(root)
    if missing > 0:
        found_A = torch.nn.functional.pad(found_A, (0, 0, 0, missing))
        found_B = torch.nn.functional.pad(found_B, (0, missing))
    return found_A, found_B


def _ridged(matrix: Tensor) -> Tensor:
    size = len(matrix)
    return matrix + torch.eye(size, dtype=matrix.dtype, device=matrix.device) * (RIDGE * matrix.trace() / size)
