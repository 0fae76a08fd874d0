"""What every path of the operator receives and hands back.

The operator serves a group of linears that read the same input, as the query, key and value projections of an attention do: a wide tensor is
then read once for all of them. A single linear is a group of one.
"""

from typing import NamedTuple

from torch import Tensor

MAX_MEMBERS = 4  # of a group


class Experts(NamedTuple):
    """Tensors of one adapter on one linear of n inputs and m outputs.

    A (r, n), B (m, r), router (E, n), scale (E,); residual_A (r, n) and residual_B (m, r), or None for no residual. Expert j owns rows
    `j d : (j + 1) d` of A and these columns of B, d = r / E.
    """

    A: Tensor
    B: Tensor
    router: Tensor
    scale: Tensor
    residual_A: Tensor | None
    residual_B: Tensor | None

    @property
    def num_experts(self) -> int:
        return self.router.shape[0]

    @property
    def rank(self) -> int:
        """Rank d of one expert."""
        return self.A.shape[0] // self.router.shape[0]


class Base(NamedTuple):
    """A frozen linear whose product the operator computes itself: weight (m, n) and bias (m,) or None."""

    weight: Tensor
    bias: Tensor | None


class Settings(NamedTuple):
    """What a group's members share: active experts, dropout on the experts' input, whether to collect statistics."""

    top_k: int
    dropout: float
    collect: bool


class Saved(NamedTuple):
    """What the forward of a group of N keeps for the backward.

    hidden `A x` (N, tokens, r), routing weights and logits (N, tokens, E), and what a path packed (any number of tensors of its own).
    """

    hidden: Tensor
    weights: Tensor
    logits: Tensor
    packed: list[Tensor]


class Result(NamedTuple):
    """Outputs, one (tokens, m) for each member; the statistics (N, blocks, 2 E + 2), or None; what the backward needs."""

    outputs: list[Tensor]
    statistics: Tensor | None
    saved: Saved


class Gradients(NamedTuple):
    """Gradients of the input (tokens, n) if asked for, and for each member of A (r, n), B (m, r) and router (E, n)."""

    x: Tensor | None
    A: list[Tensor]
    B: list[Tensor]
    router: list[Tensor]
