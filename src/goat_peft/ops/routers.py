"""Routers beyond top-k: from logits to routing weights, by autograd.

The operator's own paths route top-k (softmax over all experts is top-k with k = E) and carry a hand-written backward. The routers here choose a number of
experts that differs between tokens, or add experts that every token uses; `soft` mixes experts by weights that they give.
"""

import torch
from torch import Tensor

from .dense import topk_weights


def threshold_weights(logits: Tensor, cut: Tensor) -> Tensor:
    """AdaMoLE (arXiv 2405.00361): `a_i = p_i - tau`, active where `a_i >= 0`, weights a_i renormalised over the active experts.

    logits (tokens, E); cut (tokens,) is `u.x + b`, of which `tau = sigmoid(cut) / E`. Returns (tokens, E). Since `tau < 1/E <= max p`, an expert is always
    active; where rounding leaves none above the threshold, those that reach it share the token evenly.
    """
    probabilities = torch.softmax(logits, dim=-1)
    above = probabilities - torch.sigmoid(cut)[:, None] / logits.shape[-1]
    kept = above.clamp_min(0)
    total = kept.sum(-1, keepdim=True)
    largest = probabilities == probabilities.max(-1, keepdim=True).values
    reaching = ((above >= 0) | largest).to(kept.dtype)
    even = reaching / reaching.sum(-1, keepdim=True)
    some = total > torch.finfo(kept.dtype).eps
    return torch.where(some, kept / torch.where(some, total, torch.ones_like(total)), even)


def top_p_weights(logits: Tensor, top_p: float) -> Tensor:
    """The fewest experts whose probabilities reach `top_p` together, renormalised over them; logits and weights (tokens, E). The first always counts."""
    probabilities = torch.softmax(logits, dim=-1)
    ranked, order = probabilities.detach().sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    chosen = torch.zeros_like(ranked).scatter(-1, order, (before < top_p).to(ranked.dtype))
    kept = probabilities * chosen
    return kept / kept.sum(-1, keepdim=True)


def routing_weights(logits: Tensor, router: str, top_k: int, top_p: float, cut: Tensor | None) -> Tensor:
    """Weights (tokens, E) of the named router; `cut` is what 'threshold' compares with."""
    if router == "threshold":
        if cut is None:
            raise ValueError("router='threshold' needs cut, the logit u.x + b of each token's threshold.")
        return threshold_weights(logits, cut)
    if router == "top_p":
        return top_p_weights(logits, top_p)
    return topk_weights_autograd(logits, logits.shape[-1] if router == "softmax" else top_k)


def topk_weights_autograd(logits: Tensor, top_k: int) -> Tensor:
    """`dense.topk_weights` out of place, so that autograd can follow it."""
    if top_k == logits.shape[-1]:
        return topk_weights(logits, top_k)
    values, experts = torch.topk(logits, top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, experts, torch.softmax(values, dim=-1))
