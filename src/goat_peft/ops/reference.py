"""The equations of METHOD section 1, one expert at a time. Never optimised: every fast path is tested against this file."""

import torch
from torch import Tensor


def topk_weights_reference(logits: Tensor, top_k: int) -> Tensor:
    """Routing weights `w` (tokens, E): softmax over each token's k largest logits, 0 elsewhere."""
    weights = torch.zeros_like(logits)
    for token in range(logits.shape[0]):
        largest = torch.topk(logits[token], top_k).indices
        weights[token, largest] = torch.softmax(logits[token, largest], dim=0)
    return weights


def routed_experts_reference(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    router: Tensor,
    scale: Tensor,
    residual_A: Tensor | None,
    residual_B: Tensor | None,
    top_k: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sum_i s_i w_i(x) B_i A_i x - (1/E) sum_i s_i B0_i A0_i x` and the routing statistics.

    Shapes: x (..., n); A, residual_A (r, n); B, residual_B (m, r); router (E, n); scale (E,); token_mask like x without its last
    dimension, True for tokens that count. Expert j owns rows `j d : (j + 1) d` of A and these columns of B, d = r / E.

    Returns the adapter's output (..., m) and statistics (2 E + 2,): sum over counted tokens of the full softmax p (E), number of counted
    tokens routed to each expert (E), sum of the entropies of p in nats, number of counted tokens.
    """
    num_experts = router.shape[0]
    rank = A.shape[0] // num_experts
    tokens = x.reshape(-1, x.shape[-1])
    logits = tokens @ router.T
    weights = topk_weights_reference(logits, top_k)

    output = tokens.new_zeros(tokens.shape[0], B.shape[0])
    for i in range(num_experts):
        rows = slice(i * rank, (i + 1) * rank)
        expert = tokens @ A[rows].T @ B[:, rows].T
        output = output + scale[i] * weights[:, i : i + 1] * expert
        if residual_A is not None and residual_B is not None:
            output = output - scale[i] / num_experts * (tokens @ residual_A[rows].T @ residual_B[:, rows].T)

    probabilities = torch.softmax(logits, dim=-1)
    entropy = -(probabilities * torch.log(probabilities.clamp_min(1e-30))).sum(-1)
    counted = torch.ones_like(entropy) if token_mask is None else token_mask.reshape(-1).to(entropy.dtype)
    statistics = torch.cat(
        [
            (probabilities * counted[:, None]).sum(0),
            ((weights > 0) * counted[:, None]).sum(0),
            (entropy * counted).sum()[None],
            counted.sum()[None],
        ]
    )
    return output.reshape(*x.shape[:-1], B.shape[0]), statistics


def balance_loss_reference(logits: Tensor, top_k: int) -> Tensor:
    """`L_b = sum_i f_i P_i` of logits (T, E): `f_i = (E / (k T)) #{tokens routed to i}`, `P_i` = mean of p_i. 1 at perfect balance."""
    tokens, num_experts = logits.shape
    routed = (topk_weights_reference(logits, top_k) > 0).sum(0).to(logits.dtype)
    f = num_experts / (top_k * tokens) * routed
    return (f.detach() * torch.softmax(logits, dim=-1).mean(0)).sum()
