"""pass@k: how likely one of k samples solves a problem."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate `1 - C(n - c, k) / C(n, k)` from n samples of one problem, c of them correct (Codex paper, eq. 1).

    Raises `ValueError` when k is not in 1..n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"k={k}, correct={correct}: with {samples} samples k is 1 to {samples}, correct 0 to {samples}"
        )
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(solved: Sequence[Sequence[bool]], k: int) -> float:
    """Mean over problems; `solved` holds for each problem whether each of its samples is correct."""
    return sum(pass_at_k(len(samples), sum(samples), k) for samples in solved) / len(solved)
