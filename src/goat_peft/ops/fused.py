"""The Triton path: thin products through cuBLAS, each reading x or grad once for a whole group; routing in one small kernel of our own.

With the bases' weights, a base's product and the adapter's land in one output: the thin product is written first and the base's product
accumulates onto it (`addmm` with beta = 1), which hides the read behind the large product. The input's gradient gathers a whole group in one
tensor the same way. Nothing here waits for the device.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from . import kernels
from .call import MAX_MEMBERS, Base, Experts, Gradients, Result, Saved, Settings
from .launch import launch

_FEW_TOKENS = 16  # up to here, decoding: fewer launches count most
_PROGRAMS = 264  # two per multiprocessor of an H100; a long sum is split until about this many programs run
_MAX_PARTS = 16
_COLUMNS = 128  # of a group's r at a time in the dropout kernels, and
_SLOTS = 128  # of E d in decoding's: more do not fit into a multiprocessor's shared memory


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
    """As `dense.forward`, with dropout drawn in the kernels; without `keep` few tokens take a shorter way."""
    x = _rows_contiguous(x)
    plain = not keep and not settings.collect and seed is None
    if plain and x.shape[0] <= _FEW_TOKENS and math.prod(_decoding_tile(members[0])) <= _SLOTS:
        return _few_tokens(x, bases, members, settings, below)

    rows, columns = _pack(members, x.dtype)
    tokens, n, first = x.shape[0], len(members), members[0]
    num_experts, rank, r, residual = first.num_experts, first.rank, first.A.shape[0], first.residual_A is not None
    if seed is None:
        products = _thin(x, rows.t())
        hidden_in, rest, parts = products, products[:, n * r :], 1
    else:
        hidden_in, rest = _dropped_project(x, rows, n * r, settings.dropout, seed), _thin(x, rows[n * r :].t())
        parts = hidden_in.shape[0]

    hidden = x.new_empty(n, tokens, r)
    mixed = x.new_empty(n, tokens, 2 * r if residual else r)
    weights, logits = rest.new_empty(n, tokens, num_experts), rest.new_empty(n, tokens, num_experts)
    experts_pad, rank_pad, block = _tile(num_experts, rank)
    programs = _cdiv(tokens, block)
    statistics = rest.new_empty(n, programs, 2 * num_experts + 2) if settings.collect else None
    launch(
        kernels.gate_kernel, (programs, n),
        (hidden_in, rest, *_four([e.scale for e in members]), token_mask, hidden, mixed, weights, logits, statistics,
         tokens, hidden_in.stride(0), hidden_in.stride(-2), rest.stride(0)),
        (n, num_experts, rank, experts_pad, rank_pad, settings.top_k, residual, x.dtype != torch.float32, parts, settings.collect,
         token_mask is not None, block),
    )  # fmt: skip
    outputs = []
    for index, (member_mixed, factors) in enumerate(zip(mixed.unbind(), columns, strict=True)):
        if below is not None:
            outputs.append(below[index].addmm_(member_mixed, factors.t()))
            continue
        output = F.linear(member_mixed, factors, None if bases is None else bases[index].bias)
        outputs.append(output if bases is None else output.addmm_(x, bases[index].weight.t()))
    return Result(outputs, statistics, Saved(hidden, weights, logits, [rows, *columns]))


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
    """As `dense.backward`, with dropout drawn again in the kernels."""
    if grad_statistics is not None and grad_statistics.stride(-1) != 1:
        grad_statistics = grad_statistics.contiguous()
    x, grads = _rows_contiguous(x), [_rows_contiguous(_cast(grad, x.dtype)) for grad in grads]
    rows, *columns = saved.packed
    tokens, n, first = x.shape[0], len(members), members[0]
    num_experts, rank, r, residual = first.num_experts, first.rank, first.A.shape[0], first.residual_A is not None
    width = n * ((2 * r if residual else r) + num_experts)

    grad_mixed = saved.logits.new_empty(n, tokens, columns[0].shape[1])
    for grad, factors, out in zip(grads, columns, grad_mixed.unbind(), strict=True):
        _thin(grad, factors, out=out)
    mixed = torch.empty_like(saved.hidden)
    thin = x.new_empty(tokens, width)
    experts_pad, rank_pad, block = _tile(num_experts, rank)
    launch(
        kernels.gate_backward_kernel, (_cdiv(tokens, block), n),
        (grad_mixed, saved.hidden, saved.weights, saved.logits, *_four([e.scale for e in members]), token_mask, grad_statistics, mixed, thin,
         tokens, 0 if grad_statistics is None else grad_statistics.stride(0)),
        (n, num_experts, rank, experts_pad, rank_pad, residual, grad_statistics is not None, token_mask is not None, block),
    )  # fmt: skip
    grad_B = [
        _cast(_thin(grad.t(), part), e.B.dtype) for grad, part, e in zip(grads, mixed.unbind(), members, strict=True)
    ]

    split = n * r
    if seed is None:
        found = _thin(thin[:, : split + n * num_experts].t(), x)
        found_A, found_router = found[:split], found[split:]
    else:
        found_A = _dropped_token_sum(x, thin, split, settings.dropout, seed)
        found_router = _thin(thin[:, split : split + n * num_experts].t(), x)
    grad_A = [_cast(part, member.A.dtype) for part, member in zip(found_A.split(r), members, strict=True)]
    grad_router = [
        _cast(part, member.router.dtype) for part, member in zip(found_router.split(num_experts), members, strict=True)
    ]

    grad_x = None
    if needs_input_grad:
        grad_x = thin @ rows[:width] if seed is None else thin[:, split:] @ rows[split:width]
        for base, grad in zip(bases or [], grads, strict=False):
            grad_x.addmm_(grad, base.weight)
        if seed is not None:
            _add_dropped_input(grad_x, thin, rows, split, settings.dropout, seed)
    return Gradients(grad_x, grad_A, grad_B, grad_router)


def packed_shapes(members: list[Experts], dtype: torch.dtype) -> list[tuple[int, int]]:
    """Shapes of `Saved.packed`: the group's rows (C, n), then each member's columns (m, r or 2 r)."""
    n, first = len(members), members[0]
    (r, width), num_experts = first.A.shape, first.num_experts
    count = r if first.residual_A is None else 2 * r
    height = n * (count + num_experts * (1 if dtype == torch.float32 else 2))
    return [(height, width), *((member.B.shape[0], count) for member in members)]


def _pack(members: list[Experts], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The group's factors in `dtype`, laid out as `kernels` says; float32 needs no remainder."""
    first = members[0]
    residual = first.residual_A is not None
    if dtype == torch.float32:
        columns = [torch.cat([e.B] if e.residual_B is None else [e.B, e.residual_B], dim=-1).float() for e in members]
        return _stacked_rows(members), columns
    shape, *column_shapes = packed_shapes(members, dtype)
    rows = torch.empty(shape, dtype=dtype, device=first.A.device)
    columns = [torch.empty(column_shape, dtype=dtype, device=first.A.device) for column_shape in column_shapes]
    block, width = 1024, shape[1]
    row_programs = shape[0] // len(members) * _cdiv(width, block)
    column_programs = max(_cdiv(factors.numel(), block) for factors in columns)
    kinds = [[e.A for e in members], [e.router for e in members], [e.residual_A for e in members],
             [e.B for e in members], [e.residual_B for e in members], columns]  # fmt: skip
    launch(
        kernels.pack_kernel, (row_programs + column_programs, len(members)),
        (*(tensor for kind in kinds for tensor in _four(kind)), rows, width, *_four([e.B.shape[0] for e in members]), row_programs),  # type: ignore[arg-type]
        (len(members), first.A.shape[0], first.num_experts, residual, block),
    )  # fmt: skip
    return rows, columns


def _stacked_rows(members: list[Experts]) -> Tensor:
    """The group's rows `[A ...; router ...; A0 ...]` in float32."""
    rows = (
        [e.A for e in members]
        + [e.router for e in members]
        + [e.residual_A for e in members if e.residual_A is not None]
    )
    return torch.cat(rows).float()


def _few_tokens(
    x: Tensor, bases: list[Base] | None, members: list[Experts], settings: Settings, sums: list[Tensor] | None
) -> Result:
    """Decoding: one float32 product for the group, and one launch a member besides its base's product; nothing is kept."""
    products = F.linear(x.float(), _stacked_rows(members))
    outputs, n = [], len(members)
    for index, experts in enumerate(members):
        below = None if bases is None else F.linear(x, bases[index].weight, bases[index].bias)
        below = below if sums is None else sums[index]
        output = x.new_empty(x.shape[0], experts.B.shape[0]) if sums is None else below  # type: ignore[assignment]
        experts_pad, rank_pad = _decoding_tile(experts)
        block = 64
        launch(
            kernels.few_tokens_kernel, (_cdiv(output.shape[1], block),),  # type: ignore[union-attr]
            (products, experts.scale, experts.B, experts.residual_B, below, output, x.shape[0], output.shape[1], products.stride(0), index),  # type: ignore[union-attr]
            (n, experts.num_experts, experts.rank, experts_pad, rank_pad, settings.top_k, experts.residual_B is not None, below is not None, 16, block),
        )  # fmt: skip
        outputs.append(output)
    nothing = products.new_empty(0)
    return Result(outputs, None, Saved(nothing, nothing, nothing, []))  # type: ignore[arg-type]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which takes longer to find out that there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 and x.stride(0) >= x.shape[-1] else x.contiguous()


def _thin(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32."""
    if (
        left.dtype == torch.float32 or not left.is_cuda
    ):  # Triton's interpreter works on CPU tensors, where mm has no out_dtype
        return torch.mm(left.float(), right.float(), out=out)
    return torch.mm(left, right, out_dtype=torch.float32, out=out)


def _four(items: list) -> list:
    """One item for each of the members a kernel takes, the first repeated."""
    return items + [items[0]] * (MAX_MEMBERS - len(items))


def _cdiv(size: int, step: int) -> int:
    return -(-size // step)


def _power_of_2(size: int) -> int:
    """Smallest power of 2 that is no less."""
    return 1 << (size - 1).bit_length()


def _column_block(count: int) -> int:
    """Columns of one dropout product: a size that a tensor core takes, at most `_COLUMNS`."""
    return min(max(16, _power_of_2(count)), _COLUMNS)


@cache
def _tile(num_experts: int, rank: int) -> tuple[int, int, int]:
    """Padded E and d, and the tokens of one program of the routing kernels, so that its tile stays within the registers."""
    experts_pad, rank_pad = _power_of_2(num_experts), _power_of_2(rank)
    return experts_pad, rank_pad, max(1, min(16, 2048 // (experts_pad * rank_pad)))


def _decoding_tile(experts: Experts) -> tuple[int, int]:
    """Padded E and d of decoding's kernel, at least what a matrix product takes."""
    experts_pad = _power_of_2(experts.num_experts)
    return experts_pad, max(_power_of_2(experts.rank), 16 // experts_pad)


def blocks(tokens: int, experts: Experts) -> int:
    """Into how many blocks of tokens the statistics are split."""
    return _cdiv(tokens, _tile(experts.num_experts, experts.rank)[2])


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _dropout_arguments(dropout: float) -> tuple[int, float]:
    """Dropout as a threshold of 2^24, and what a kept entry is multiplied by."""
    return round(dropout * 2**24), 1 / (1 - dropout)


def _split(length: int, blocks: int, step: int) -> tuple[int, int]:
    """How many parts, and how long each, to cut a sum of `length` into when `blocks` programs run besides."""
    length = max(length, 1)  # an empty sum is one part, of zeros
    parts = max(1, min(_MAX_PARTS, _PROGRAMS // max(blocks, 1), _cdiv(length, 2 * step)))
    span = _cdiv(_cdiv(length, parts), step) * step
    return _cdiv(length, span), span


def _dropped_project(x: Tensor, rows: Tensor, count: int, dropout: float, seed: Tensor) -> Tensor:
    """Parts (S, T, count) of dropout(x) @ rows[:count]^T."""
    tokens, width = x.shape
    wide = x.dtype == torch.float32
    block_t, block_k = (32, 32) if wide else (64, 64 if count > 64 else 128)
    block_c = _column_block(count)
    grid = _cdiv(tokens, block_t), _cdiv(count, block_c)
    parts, span = _split(width, math.prod(grid), block_k)
    out = x.new_empty(parts, tokens, count, dtype=torch.float32)
    launch(
        kernels.dropped_project_kernel, (grid[0], parts, grid[1]),
        (x, rows, out, seed, tokens, width, span, x.stride(0), *_dropout_arguments(dropout)),
        (count, block_c, _precision(x), block_t, block_k), num_stages=2 if wide else 3,
    )  # fmt: skip
    return out


def _dropped_token_sum(wide: Tensor, thin: Tensor, count: int, dropout: float, seed: Tensor) -> Tensor:
    """sum_t thin[t, c] dropout(wide)[t, n] as (count, n) float32, for the leading columns of thin."""
    tokens, width = wide.shape
    block_t, block_n = (16, 64) if wide.dtype == torch.float32 else (64, 128)
    block_c = _column_block(count)
    grid = _cdiv(width, block_n), _cdiv(count, block_c)
    parts, span = _split(tokens, math.prod(grid), block_t)
    out = wide.new_empty(parts, count, width, dtype=torch.float32)
    launch(
        kernels.dropped_token_sum_kernel, (grid[0], parts, grid[1]),
        (wide, thin, out, seed, tokens, width, span, wide.stride(0), thin.stride(0), *_dropout_arguments(dropout)),
        (count, block_c, _precision(wide), block_t, block_n),
        num_warps=4 if count <= 64 else 8, num_stages=2 if wide.dtype == torch.float32 else 3,
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)


def _add_dropped_input(grad: Tensor, thin: Tensor, rows: Tensor, count: int, dropout: float, seed: Tensor) -> None:
    """grad += (thin[:, :count] @ rows[:count]) through dropout."""
    tokens, width = grad.shape
    block_t, block_n = (32, 32) if grad.dtype == torch.float32 else (64, 128)
    launch(
        kernels.dropped_input_kernel, (_cdiv(tokens, block_t), _cdiv(width, block_n)),
        (grad, thin, rows, seed, tokens, width, thin.stride(0), *_dropout_arguments(dropout)),
        (count, _column_block(count), _precision(grad), block_t, block_n),
    )  # fmt: skip
