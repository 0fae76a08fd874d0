"""The torch path: all experts as one thin product, with a hand-written backward, on any device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Base, Experts, Gradients, Result, Saved, Settings


def topk_weights(logits: Tensor, top_k: int) -> Tensor:
    """Routing weights (tokens, E): softmax over each token's k largest logits, 0 elsewhere. Exactly k of them are active, ties included."""
    if top_k == logits.shape[-1]:
        return torch.softmax(logits, dim=-1)
    values, experts = torch.topk(logits, top_k, dim=-1)
    return torch.zeros_like(logits).scatter_(-1, experts, torch.softmax(values, dim=-1))


def statistics_rows(logits: Tensor, weights: Tensor) -> Tensor:
    """Each token's part of the statistics, (tokens, 2 E + 2); see `routed_experts_reference`."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(-1, keepdim=True)
    return torch.cat([probabilities, (weights > 0).to(logits.dtype), entropy, torch.ones_like(entropy)], dim=-1)


def routing_statistics(logits: Tensor, weights: Tensor, token_mask: Tensor | None) -> Tensor:
    """Statistics (1, 2 E + 2) of one call, a single block of tokens."""
    rows = statistics_rows(logits, weights)
    return rows.sum(0, keepdim=True) if token_mask is None else token_mask.to(rows.dtype)[None] @ rows


def dropout_mask(x: Tensor, dropout: float, seed: Tensor | None) -> Tensor | None:
    """0 or `1 / (1 - dropout)` for each entry of x, the same for the same seed: the backward draws it again instead of keeping it."""
    if seed is None:
        return None
    generator = torch.Generator(x.device)
    generator.manual_seed(int(seed))  # this path is for devices where reading a number costs nothing, and for tests
    kept = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator)
    return kept.div_(1 - dropout)


def _stacked_A(experts: Experts, dtype: torch.dtype) -> Tensor:
    """`[A; A0; router]`, the rows that one product with x serves; the router joins only where it loses no precision."""
    rows = [experts.A] if experts.residual_A is None else [experts.A, experts.residual_A]
    if _router_joins(experts, dtype):
        rows.append(experts.router)
    return torch.cat(rows).to(dtype)


def _router_joins(experts: Experts, dtype: torch.dtype) -> bool:
    """Whether the router can be multiplied along with A without losing precision."""
    return dtype == experts.router.dtype and dtype in (torch.float32, torch.float64)


def _stacked_B(experts: Experts, dtype: torch.dtype) -> Tensor:
    """`[B, B0]`."""
    columns = [experts.B] if experts.residual_B is None else [experts.B, experts.residual_B]
    return torch.cat(columns, dim=-1).to(dtype)


def _expand(per_expert: Tensor, experts: Experts, dtype: torch.dtype) -> Tensor:
    """(..., E) to (..., r): each expert's value for each of its d ranks."""
    return per_expert.to(dtype).repeat_interleave(experts.rank, dim=-1)


def _gated(hidden: Tensor, gate: Tensor, experts: Experts) -> Tensor:
    """hidden (T, r) times its expert's gate (T, E)."""
    cube = hidden.unflatten(-1, (experts.num_experts, experts.rank))
    return (cube * gate.to(hidden.dtype)[..., None]).flatten(1)


def _folded(experts: Experts, base: Base | None, tokens: int) -> tuple[Experts, Base | None]:
    """Member and base to compute with: the residual inside the base's weight, `W0 - (s / E) B0 A0`, where that takes less work than apart.

    Forming it costs `m n r` once and applying it apart `(m + n) r` a token. Only where the sum is not rounded to less than float32.
    """
    if base is None or experts.residual_A is None or base.weight.dtype not in (torch.float32, torch.float64):
        return experts, base
    m, n = base.weight.shape
    if tokens * (m + n) < m * n:
        return experts, base
    columns = experts.residual_B * _expand(-experts.scale / experts.num_experts, experts, experts.residual_B.dtype)  # type: ignore[operator,union-attr]
    weight = torch.addmm(base.weight, columns.to(base.weight.dtype), experts.residual_A.to(base.weight.dtype))
    return experts._replace(residual_A=None, residual_B=None), Base(weight, base.bias)


def forward(
    x: Tensor,
    bases: list[Base] | None,
    members: list[Experts],
    settings: Settings,
    token_mask: Tensor | None,
    seed: Tensor | None,
    keep: bool,
    below: list[Tensor] | None = None,
) -> Result:
    """Each member's output for tokens x (tokens, n), on top of its base's where `bases` are given.

    With `below` instead, (tokens, m) in x's dtype for each member, it is added to those in place, and they are the outputs. Computes in x's dtype,
    the router in float32 at least. `keep` says whether a backward may follow; this path does the same either way.
    """
    kept = dropout_mask(x, settings.dropout, seed)
    outputs, hidden, weights, logits, statistics = [], [], [], [], []
    for index, member in enumerate(members):
        experts, base = _folded(member, None if bases is None else bases[index], x.shape[0])
        product, member_logits = _products(x, experts, kept)
        member_weights = topk_weights(member_logits, settings.top_k)
        if settings.collect:
            statistics.append(routing_statistics(member_logits, member_weights, token_mask))
        mixed = _mixed(product, member_weights, experts)
        columns = _stacked_B(experts, x.dtype)
        if below is not None:
            outputs.append(below[index].addmm_(mixed, columns.T))
        elif base is None:
            outputs.append(F.linear(mixed, columns))
        else:
            outputs.append(F.linear(x, base.weight, base.bias).addmm_(mixed, columns.T))
        hidden.append(product[:, : experts.A.shape[0]])
        weights.append(member_weights)
        logits.append(member_logits)
    # A group of one keeps views; logits are copied, for they may share memory with hidden, and an operator's results must not.
    saved = Saved(_together(hidden), _together(weights), torch.stack(logits), [])
    return Result(outputs, torch.stack(statistics) if settings.collect else None, saved)


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _products(x: Tensor, experts: Experts, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """`[A; A0] x`, A's part after dropout, and the router's logits."""
    r, dtype = experts.A.shape[0], x.dtype
    stacked = _stacked_A(experts, dtype)
    if kept is None:
        product = F.linear(x, stacked)
    else:
        product = torch.cat([F.linear(x * kept, stacked[:r]), F.linear(x, stacked[r:])], dim=-1)
    if _router_joins(experts, dtype):
        return product, product[:, -experts.num_experts :].to(torch.promote_types(dtype, torch.float32))
    return product, F.linear(x.float(), experts.router.float())


def _mixed(product: Tensor, weights: Tensor, experts: Experts) -> Tensor:
    """What `[B, B0]` multiplies: `gate * A x`, and `-(s / E) A0 x` where there is a residual."""
    r, dtype, scale = experts.A.shape[0], product.dtype, experts.scale.to(weights.dtype)
    mixed = _gated(product[:, :r], weights * scale, experts)
    if experts.residual_A is None:
        return mixed
    return torch.cat([mixed, product[:, r : 2 * r] * _expand(-scale / experts.num_experts, experts, dtype)], dim=-1)


def backward(
    grads: list[Tensor],
    grad_statistics: Tensor | None,
    x: Tensor,
    bases: list[Base] | None,
    members: list[Experts],
    saved: Saved,
    settings: Settings,
    token_mask: Tensor | None,
    seed: Tensor | None,
    needs_input_grad: bool,
) -> Gradients:
    """Gradients for `grads`, (tokens, m) for each output, and `grad_statistics` (N, 1, 2 E + 2), of which only the sums of p carry one."""
    kept = dropout_mask(x, settings.dropout, seed)
    dropped = x if kept is None else x * kept
    found = Gradients(None, [], [], [])
    grad_x, grad_dropped = None, None
    for index, member in enumerate(members):
        experts, base = _folded(member, None if bases is None else bases[index], x.shape[0])
        r, num_experts, grad = experts.A.shape[0], experts.num_experts, grads[index].to(x.dtype)
        hidden, weights, logits = saved.hidden[index], saved.weights[index], saved.logits[index]
        scale = experts.scale.to(weights.dtype)
        gate = weights * scale
        grad_mixed = grad @ _stacked_B(experts, x.dtype)
        grad_gate = (grad_mixed[:, :r] * hidden).unflatten(-1, (num_experts, experts.rank)).sum(-1).to(weights.dtype)
        balance = None if grad_statistics is None else grad_statistics[index, 0]
        grad_logits = _grad_logits(grad_gate * scale, weights, logits, balance, token_mask).to(x.dtype)
        grad_hidden = _gated(grad_mixed[:, :r], gate, experts)
        found.B.append((grad.T @ _gated(hidden, gate, experts)).to(experts.B.dtype))

        # Gradients of A x, router x and A0 x side by side; one product with x serves A and the router, another gives x's gradient.
        parts, factors = [grad_hidden, grad_logits], [experts.A, experts.router]
        if experts.residual_A is not None:
            parts.append(grad_mixed[:, r:] * _expand(-scale / num_experts, experts, x.dtype))
            factors.append(experts.residual_A)
        thin = torch.cat(parts, dim=-1)
        if kept is None:
            both = thin[:, : r + num_experts].T @ x
            grad_A, grad_router = both[:r], both[r:]
        else:
            grad_A, grad_router = grad_hidden.T @ dropped, grad_logits.T @ x
        found.A.append(grad_A.to(experts.A.dtype))
        found.router.append(grad_router.to(experts.router.dtype))
        if needs_input_grad:
            if kept is not None:
                added = grad_hidden @ experts.A.to(x.dtype)
                grad_dropped = added if grad_dropped is None else grad_dropped.add_(added)
                thin, factors = thin[:, r:], factors[1:]
            rows = torch.cat(factors).to(x.dtype)
            grad_x = thin @ rows if grad_x is None else grad_x.addmm_(thin, rows)
            if base is not None:
                grad_x.addmm_(grad, base.weight)
    if grad_x is not None and grad_dropped is not None and kept is not None:
        grad_x.addcmul_(grad_dropped, kept)
    return Gradients(grad_x, found.A, found.B, found.router)


def _grad_logits(
    grad_weights: Tensor, weights: Tensor, logits: Tensor, grad_statistics: Tensor | None, token_mask: Tensor | None
) -> Tensor:
    """Through the softmax over the chosen experts, and through the full softmax of the balance loss."""
    grad = _through_softmax(grad_weights, weights)
    if grad_statistics is None:
        return grad
    probabilities = torch.softmax(logits, dim=-1)
    balance = _through_softmax(grad_statistics[: logits.shape[-1]].expand_as(logits), probabilities)
    return grad + (balance if token_mask is None else balance * token_mask[:, None].to(balance.dtype))


def _through_softmax(grad: Tensor, p: Tensor) -> Tensor:
    """`p (grad - sum(p grad))` of each row, with `grad` counted from the likeliest entry's: no digits cancel where that one is nearly sure."""
    grad = grad - grad.gather(-1, p.argmax(-1, keepdim=True))
    return p * (grad - (p * grad).sum(-1, keepdim=True))


def packed_shapes(members: list[Experts], dtype: torch.dtype) -> list[tuple[int, int]]:
    """Shapes of `Saved.packed`: this path packs nothing."""
    return []


def blocks(tokens: int, experts: Experts) -> int:
    """Into how many blocks of tokens the statistics are split."""
    return 1
