"""Triton kernels of the fused path. Shapes and names as in `reference.py`; T tokens, N members of a group, all accumulation in float32.

A group's factors are packed as rows `[A ...; router ...; A0 ...; remainder ...]` (C, n), each kind for all members in turn, so that one product with
x serves the group; see `pack_kernel` for the remainder. Kernels that sum over a long axis split it over programs and write partial sums, which
their reader adds: no atomics, so results repeat.
"""

import triton
import triton.language as tl


@triton.jit
def _keeps(seed, rows, columns, width, threshold):
    """Dropout's decision for entries (rows, columns) of a matrix `width` wide: a 32-bit hash of seed and position against `threshold` of 2^24."""
    value = (rows[:, None] * width + columns[None, :]).to(tl.uint32) * 0x9E3779B1
    value = value ^ seed
    value = (value ^ (value >> 16)) * 0x85EBCA6B
    value = (value ^ (value >> 13)) * 0xC2B2AE35
    value = value ^ (value >> 16)
    return (value >> 8).to(tl.int32) >= threshold


@triton.jit
def _of_member(member, first, second, third, fourth):
    """The pointer of a member of a group of at most four."""
    low = tl.where(member == 0, first, second)
    high = tl.where(member == 2, third, fourth)
    return tl.where(member < 2, low, high)


@triton.jit
def pack_kernel(
    A0_ptr, A1_ptr, A2_ptr, A3_ptr, router0_ptr, router1_ptr, router2_ptr, router3_ptr, fixed_A0_ptr, fixed_A1_ptr, fixed_A2_ptr, fixed_A3_ptr,
    B0_ptr, B1_ptr, B2_ptr, B3_ptr, fixed_B0_ptr, fixed_B1_ptr, fixed_B2_ptr, fixed_B3_ptr, columns0_ptr, columns1_ptr, columns2_ptr, columns3_ptr,
    rows_ptr, width, m0, m1, m2, m3, row_programs,
    MEMBERS: tl.constexpr, R: tl.constexpr, EXPERTS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One member's part of the packed rows, and its columns [B, B0] (m, r or 2 r), in 16 bits; `fixed` are the residual's factors.

    The remainder is what rounding the router to 16 bits loses, rounded in turn: the two together give logits at float32's precision.
    """
    program = tl.program_id(0)
    member = tl.program_id(1)
    if program < row_programs:
        blocks = tl.cdiv(width, BLOCK)
        row = program // blocks
        k = program % blocks * BLOCK + tl.arange(0, BLOCK)
        ok = k < width
        after: tl.constexpr = R + EXPERTS + (R if RESIDUAL else 0)
        if row < R:
            A = _of_member(member, A0_ptr, A1_ptr, A2_ptr, A3_ptr)
            tl.store(rows_ptr + (member * R + row) * width + k, tl.load(A + row * width + k, mask=ok), mask=ok)
        elif row < R + EXPERTS:
            router = _of_member(member, router0_ptr, router1_ptr, router2_ptr, router3_ptr) + (row - R) * width
            tl.store(
                rows_ptr + (MEMBERS * R + member * EXPERTS + row - R) * width + k, tl.load(router + k, mask=ok), mask=ok
            )
        elif row < after:
            if RESIDUAL:
                fixed = (
                    _of_member(member, fixed_A0_ptr, fixed_A1_ptr, fixed_A2_ptr, fixed_A3_ptr)
                    + (row - R - EXPERTS) * width
                )
                out = MEMBERS * (R + EXPERTS) + member * R + row - R - EXPERTS
                tl.store(rows_ptr + out * width + k, tl.load(fixed + k, mask=ok), mask=ok)
        else:
            router = _of_member(member, router0_ptr, router1_ptr, router2_ptr, router3_ptr) + (row - after) * width
            full = tl.load(router + k, mask=ok)
            out = MEMBERS * after + member * EXPERTS + row - after
            tl.store(rows_ptr + out * width + k, full - full.to(rows_ptr.dtype.element_ty).to(tl.float32), mask=ok)
    else:
        columns: tl.constexpr = R * (2 if RESIDUAL else 1)
        index = (program - row_programs) * BLOCK + tl.arange(0, BLOCK)
        out_features = tl.where(member < 2, tl.where(member == 0, m0, m1), tl.where(member == 2, m2, m3))
        ok = index < out_features * columns
        m, c = index // columns, index % columns
        value = tl.load(_of_member(member, B0_ptr, B1_ptr, B2_ptr, B3_ptr) + m * R + c, mask=ok & (c < R), other=0.0)
        if RESIDUAL:
            fixed_B = _of_member(member, fixed_B0_ptr, fixed_B1_ptr, fixed_B2_ptr, fixed_B3_ptr)
            value += tl.load(fixed_B + m * R + c - R, mask=ok & (c >= R), other=0.0)
        tl.store(_of_member(member, columns0_ptr, columns1_ptr, columns2_ptr, columns3_ptr) + index, value, mask=ok)


@triton.jit
def dropped_project_kernel(
    x_ptr, rows_ptr, out_ptr, seed_ptr, tokens, width, span, stride_x, threshold, inverse_keep,
    COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[s, t, :] = part s of dropout(x)[t] @ rows[:COLUMNS]^T, the mask made on the way."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    row_ok = rows < tokens
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    seed = tl.load(seed_ptr).to(tl.uint32)
    for offset in range(0, span, BLOCK_K):
        k = part * span + offset + tl.arange(0, BLOCK_K)
        k_ok = k < width
        x = tl.load(
            x_ptr + rows[:, None].to(tl.int64) * stride_x + k[None, :], mask=row_ok[:, None] & k_ok[None, :], other=0.0
        )
        kept = tl.where(_keeps(seed, rows, k, width, threshold), x * inverse_keep, 0.0).to(x.dtype)
        factor = tl.load(
            rows_ptr + column[None, :] * width + k[:, None], mask=(column < COLUMNS)[None, :] & k_ok[:, None], other=0.0
        )
        total = tl.dot(kept, factor, total, input_precision=PRECISION)
    out = out_ptr + (part * tokens + rows[:, None]).to(tl.int64) * COLUMNS + column[None, :]
    tl.store(out, total, mask=row_ok[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def _load_parts(ptr, offsets, mask, stride_part, PARTS: tl.constexpr):
    """Sum of the partial products at `offsets`."""
    total = tl.load(ptr + offsets, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(ptr + part * stride_part + offsets, mask=mask, other=0.0)
    return total


@triton.jit
def _topk_weights(logits, expert, TOP_K: tl.constexpr, EXPERTS: tl.constexpr):
    """Softmax over each row's TOP_K largest logits (T, E padded), 0 elsewhere; of equal logits the lower expert wins. Padding holds -inf."""
    if TOP_K == EXPERTS:
        active = tl.broadcast_to(expert[None, :] < EXPERTS, logits.shape)
    else:
        left = logits
        active = tl.zeros(logits.shape, tl.int1)
        for _ in tl.static_range(TOP_K):
            best = tl.argmax(left, axis=1)
            chosen = expert[None, :] == best[:, None]
            active = active | chosen
            left = tl.where(chosen, float("-inf"), left)
    top = tl.max(logits, axis=1)
    exponentials = tl.where(active, tl.exp(logits - top[:, None]), 0.0)
    return exponentials / tl.sum(exponentials, axis=1)[:, None], active


@triton.jit
def gate_kernel(
    first_ptr, rest_ptr, scale0_ptr, scale1_ptr, scale2_ptr, scale3_ptr, mask_ptr, hidden_ptr, mixed_ptr, weights_ptr, logits_ptr, statistics_ptr,
    tokens, stride_part, stride_first, stride_rest,
    MEMBERS: tl.constexpr, EXPERTS: tl.constexpr, RANK: tl.constexpr, EXPERTS_PAD: tl.constexpr, RANK_PAD: tl.constexpr, TOP_K: tl.constexpr,
    RESIDUAL: tl.constexpr, REMAINDER: tl.constexpr, PARTS: tl.constexpr, COLLECT: tl.constexpr, MASKED: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Routing of one member: from A x (parts, in `first`) and [router; A0; remainder] x (in `rest`) to hidden (T, r), logits and weights (T, E),
    mixed (T, r or 2 r) and per-block statistics (2 E + 2)."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    member = tl.program_id(1)
    row_ok = rows < tokens
    expert = tl.arange(0, EXPERTS_PAD)
    rank = tl.arange(0, RANK_PAD)
    expert_ok = expert < EXPERTS
    r: tl.constexpr = EXPERTS * RANK
    width: tl.constexpr = r * (2 if RESIDUAL else 1)

    rest = rest_ptr + rows[:, None] * stride_rest + member * EXPERTS + expert[None, :]
    table_ok = row_ok[:, None] & expert_ok[None, :]
    logits = tl.load(rest, mask=table_ok, other=0.0)
    if REMAINDER:
        logits += tl.load(rest + MEMBERS * (EXPERTS + (r if RESIDUAL else 0)), mask=table_ok, other=0.0)
    table = (member * tokens + rows[:, None]) * EXPERTS + expert[None, :]
    tl.store(logits_ptr + table, logits, mask=table_ok)
    logits = tl.where(expert_ok[None, :], logits, float("-inf"))
    weights, active = _topk_weights(logits, expert, TOP_K, EXPERTS)
    tl.store(weights_ptr + table, weights, mask=table_ok)

    scale_ptr = _of_member(member, scale0_ptr, scale1_ptr, scale2_ptr, scale3_ptr)
    scale = tl.load(scale_ptr + expert, mask=expert_ok, other=0.0).to(tl.float32)
    position = expert[None, :, None] * RANK + rank[None, None, :]
    cube_ok = row_ok[:, None, None] & expert_ok[None, :, None] & (rank < RANK)[None, None, :]
    hidden = _load_parts(
        first_ptr, rows[:, None, None] * stride_first + member * r + position, cube_ok, stride_part, PARTS
    )
    out_rows = member * tokens + rows[:, None, None]
    tl.store(hidden_ptr + out_rows * r + position, hidden, mask=cube_ok)
    tl.store(mixed_ptr + out_rows * width + position, hidden * (weights * scale[None, :])[:, :, None], mask=cube_ok)
    if RESIDUAL:
        fixed = tl.load(
            rest_ptr + rows[:, None, None] * stride_rest + MEMBERS * EXPERTS + member * r + position,
            mask=cube_ok,
            other=0.0,
        )
        tl.store(mixed_ptr + out_rows * width + r + position, fixed * (-scale / EXPERTS)[None, :, None], mask=cube_ok)

    if COLLECT:
        counted = row_ok.to(tl.float32)
        if MASKED:
            counted = tl.load(mask_ptr + rows, mask=row_ok, other=0).to(tl.float32)
        shifted = logits - tl.max(logits, axis=1)[:, None]
        exponentials = tl.exp(shifted)
        total = tl.sum(exponentials, axis=1)
        probabilities = exponentials / total[:, None]
        entropy = tl.log(total) - tl.sum(tl.where(expert_ok[None, :], probabilities * shifted, 0.0), axis=1)
        entropy = tl.where(row_ok, entropy, 0.0)
        block = statistics_ptr + (member * tl.num_programs(0) + tl.program_id(0)) * (2 * EXPERTS + 2)
        tl.store(block + expert, tl.sum(probabilities * counted[:, None], axis=0), mask=expert_ok)
        tl.store(block + EXPERTS + expert, tl.sum(active.to(tl.float32) * counted[:, None], axis=0), mask=expert_ok)
        tl.store(block + 2 * EXPERTS, tl.sum(entropy * counted, axis=0))
        tl.store(block + 2 * EXPERTS + 1, tl.sum(counted, axis=0))


@triton.jit
def _through_softmax(grad, p):
    """`p (grad - sum(p grad))` of each row, with `grad` counted from the likeliest entry's: no digits cancel where that one is nearly sure."""
    likeliest = tl.max(p, axis=1)[:, None]
    grad = grad - tl.max(tl.where(p == likeliest, grad, float("-inf")), axis=1)[:, None]
    return p * (grad - tl.sum(p * grad, axis=1)[:, None])


@triton.jit
def gate_backward_kernel(
    grad_ptr, hidden_ptr, weights_ptr, logits_ptr, scale0_ptr, scale1_ptr, scale2_ptr, scale3_ptr, mask_ptr, grad_statistics_ptr, mixed_ptr, rows_ptr,
    tokens, stride_statistics,
    MEMBERS: tl.constexpr, EXPERTS: tl.constexpr, RANK: tl.constexpr, EXPERTS_PAD: tl.constexpr, RANK_PAD: tl.constexpr,
    RESIDUAL: tl.constexpr, BALANCE: tl.constexpr, MASKED: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """From grad @ [B, B0] (N, T, r or 2 r): mixed (N, T, r), which B's gradient needs, and rows (T, C) = gradients of [A x, router x, A0 x]."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    member = tl.program_id(1)
    row_ok = rows < tokens
    expert = tl.arange(0, EXPERTS_PAD)
    rank = tl.arange(0, RANK_PAD)
    expert_ok = expert < EXPERTS
    r: tl.constexpr = EXPERTS * RANK
    columns: tl.constexpr = r * (2 if RESIDUAL else 1)
    width: tl.constexpr = MEMBERS * (columns + EXPERTS)

    table = (member * tokens + rows[:, None]) * EXPERTS + expert[None, :]
    table_ok = row_ok[:, None] & expert_ok[None, :]
    weights = tl.load(weights_ptr + table, mask=table_ok, other=0.0)
    scale_ptr = _of_member(member, scale0_ptr, scale1_ptr, scale2_ptr, scale3_ptr)
    scale = tl.load(scale_ptr + expert, mask=expert_ok, other=0.0).to(tl.float32)
    gate = weights * scale[None, :]

    position = expert[None, :, None] * RANK + rank[None, None, :]
    cube_ok = row_ok[:, None, None] & expert_ok[None, :, None] & (rank < RANK)[None, None, :]
    in_rows = member * tokens + rows[:, None, None]
    hidden = tl.load(hidden_ptr + in_rows * r + position, mask=cube_ok, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + in_rows * columns + position, mask=cube_ok, other=0.0)
    tl.store(mixed_ptr + in_rows * r + position, hidden * gate[:, :, None], mask=cube_ok)
    out = rows_ptr + rows[:, None, None].to(tl.int64) * width + position
    tl.store(out + member * r, grad * gate[:, :, None], mask=cube_ok)
    if RESIDUAL:
        fixed = tl.load(grad_ptr + in_rows * columns + r + position, mask=cube_ok, other=0.0)
        tl.store(out + MEMBERS * (r + EXPERTS) + member * r, fixed * (-scale / EXPERTS)[None, :, None], mask=cube_ok)

    grad_weights = tl.sum(grad * hidden, axis=2) * scale[None, :]
    grad_logits = _through_softmax(grad_weights, weights)
    if BALANCE:
        logits = tl.load(logits_ptr + table, mask=table_ok, other=float("-inf"))
        exponentials = tl.where(table_ok, tl.exp(logits - tl.max(logits, axis=1)[:, None]), 0.0)
        probabilities = exponentials / tl.where(row_ok, tl.sum(exponentials, axis=1), 1.0)[:, None]
        grad_p = tl.load(grad_statistics_ptr + member * stride_statistics + expert, mask=expert_ok, other=0.0)[None, :]
        balance = _through_softmax(grad_p, probabilities)
        if MASKED:
            balance = balance * tl.load(mask_ptr + rows, mask=row_ok, other=0).to(tl.float32)[:, None]
        grad_logits += balance
    where = rows_ptr + rows[:, None].to(tl.int64) * width + MEMBERS * r + member * EXPERTS + expert[None, :]
    tl.store(where, grad_logits, mask=table_ok)


@triton.jit
def dropped_token_sum_kernel(
    wide_ptr, thin_ptr, out_ptr, seed_ptr, tokens, width, span, stride_wide, stride_thin, threshold, inverse_keep,
    COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[s, c, n] = part s of sum_t thin[t, c] dropout(wide)[t, n]: A's gradient, the mask made again on the way."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    n_ok = n < width
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    seed = tl.load(seed_ptr).to(tl.uint32)
    for offset in range(0, span, BLOCK_T):
        rows = part * span + offset + tl.arange(0, BLOCK_T)
        row_ok = rows < tokens
        wide = tl.load(
            wide_ptr + rows[:, None].to(tl.int64) * stride_wide + n[None, :],
            mask=row_ok[:, None] & n_ok[None, :],
            other=0.0,
        )
        thin = tl.load(
            thin_ptr + rows[None, :].to(tl.int64) * stride_thin + column[:, None],
            mask=row_ok[None, :] & (column < COLUMNS)[:, None],
            other=0.0,
        )
        kept = tl.where(_keeps(seed, rows, n, width, threshold), wide * inverse_keep, 0.0).to(wide.dtype)
        total = tl.dot(thin, kept, total, input_precision=PRECISION)
    out = out_ptr + (part * COLUMNS + column[:, None]) * width + n[None, :]
    tl.store(out, total, mask=(column < COLUMNS)[:, None] & n_ok[None, :])


@triton.jit
def dropped_input_kernel(
    grad_ptr, thin_ptr, A_ptr, seed_ptr, tokens, width, stride_thin, threshold, inverse_keep,
    COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """grad[t, n] += (thin[t, :COLUMNS] @ A)[t, n] through dropout: the experts' part of the input's gradient."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok, n_ok = rows < tokens, n < width
    added = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for start in tl.range(0, COLUMNS, BLOCK_C, num_stages=1):
        column = start + tl.arange(0, BLOCK_C)
        column_ok = column < COLUMNS
        thin = tl.load(
            thin_ptr + rows[:, None].to(tl.int64) * stride_thin + column[None, :],
            mask=row_ok[:, None] & column_ok[None, :],
            other=0.0,
        )
        A = tl.load(A_ptr + column[:, None] * width + n[None, :], mask=column_ok[:, None] & n_ok[None, :], other=0.0)
        added = tl.dot(thin, A, added, input_precision=PRECISION)
    kept = tl.where(_keeps(tl.load(seed_ptr).to(tl.uint32), rows, n, width, threshold), added * inverse_keep, 0.0)
    where = grad_ptr + rows[:, None].to(tl.int64) * width + n[None, :]
    ok = row_ok[:, None] & n_ok[None, :]
    tl.store(where, tl.load(where, mask=ok, other=0.0) + kept, mask=ok)


@triton.jit
def few_tokens_kernel(
    parts_ptr, scale_ptr, B_ptr, B0_ptr, base_ptr, out_ptr, tokens, out_features, stride_parts, member,
    MEMBERS: tl.constexpr, EXPERTS: tl.constexpr, RANK: tl.constexpr, EXPERTS_PAD: tl.constexpr, RANK_PAD: tl.constexpr, TOP_K: tl.constexpr,
    RESIDUAL: tl.constexpr, HAS_BASE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Decoding: routing and up-projection of one member in one launch, out = base + B mixed + B0 fixed; each program routes again, which is cheap."""
    rows = tl.arange(0, BLOCK_T)
    row_ok = rows < tokens
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_ok = m < out_features
    expert = tl.arange(0, EXPERTS_PAD)
    expert_ok = expert < EXPERTS
    r: tl.constexpr = EXPERTS * RANK

    rest = parts_ptr + MEMBERS * r
    table = rows[:, None] * stride_parts + member * EXPERTS + expert[None, :]
    table_ok = row_ok[:, None] & expert_ok[None, :]
    logits = tl.load(rest + table, mask=table_ok, other=0.0)
    weights, _ = _topk_weights(tl.where(expert_ok[None, :], logits, float("-inf")), expert, TOP_K, EXPERTS)
    scale = tl.load(scale_ptr + expert, mask=expert_ok, other=0.0).to(tl.float32)
    slots: tl.constexpr = EXPERTS_PAD * RANK_PAD
    gate = tl.reshape(
        tl.broadcast_to((weights * scale[None, :])[:, :, None], (BLOCK_T, EXPERTS_PAD, RANK_PAD)), (BLOCK_T, slots)
    )

    slot = tl.arange(0, slots)
    position = slot // RANK_PAD * RANK + slot % RANK_PAD
    slot_ok = (slot // RANK_PAD < EXPERTS) & (slot % RANK_PAD < RANK)
    hidden_ok = row_ok[:, None] & slot_ok[None, :]
    factor_ok = slot_ok[:, None] & m_ok[None, :]
    hidden = tl.load(
        parts_ptr + rows[:, None] * stride_parts + member * r + position[None, :], mask=hidden_ok, other=0.0
    )
    factor = m[None, :] * r + position[:, None]
    B = tl.load(B_ptr + factor, mask=factor_ok, other=0.0).to(tl.float32)
    total = tl.dot(hidden * gate, B, input_precision="tf32x3")
    if RESIDUAL:
        fixed = tl.load(
            rest + rows[:, None] * stride_parts + MEMBERS * EXPERTS + member * r + position[None, :],
            mask=hidden_ok,
            other=0.0,
        )
        shrink = tl.load(scale_ptr + slot // RANK_PAD, mask=slot_ok, other=0.0).to(tl.float32) * (-1.0 / EXPERTS)
        B0 = tl.load(B0_ptr + factor, mask=factor_ok, other=0.0).to(tl.float32)
        total = tl.dot(fixed * shrink[None, :], B0, total, input_precision="tf32x3")
    where = rows[:, None] * out_features + m[None, :]
    ok = row_ok[:, None] & m_ok[None, :]
    if HAS_BASE:
        total += tl.load(base_ptr + where, mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, total, mask=ok)
