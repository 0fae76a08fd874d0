"""The operator as the adapter calls it: one autograd function over the paths, visible to `torch.compile` as two opaque operators."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import dense
from .call import Base, Experts, Gradients, Result, Saved, Settings
from .paths import autocasts, path_for


def _path(x: Tensor) -> ModuleType:
    if path_for(x) == "torch":
        return dense
    from . import fused  # needs Triton

    return fused


class _Layout(NamedTuple):
    """Where a group's tensors are in one flat list: A, B, router, scale of each member, then residual_A, residual_B, then weight, bias."""

    members: int
    residual: bool
    base: bool
    below: bool = False  # the outputs of bases that compute themselves follow at the end

    def members_of(self, tensors: Sequence[Tensor | None]) -> list[Experts]:
        fields = [tensors[i * self.members : (i + 1) * self.members] for i in range(6 if self.residual else 4)]
        if not self.residual:
            fields += [[None] * self.members] * 2
        return [Experts(*member) for member in zip(*fields, strict=True)]  # type: ignore[arg-type]

    def bases_of(self, tensors: Sequence[Tensor | None]) -> list[Base] | None:
        if not self.base:
            return None
        start = (6 if self.residual else 4) * self.members
        weights, biases = tensors[start : start + self.members], tensors[start + self.members :]
        return [Base(weight, bias) for weight, bias in zip(weights, biases, strict=True)]  # type: ignore[arg-type]


# What `torch.compile` sees: flat lists of tensors and numbers. The lists returned hold the outputs, the statistics (empty unless collected), hidden,
# weights, logits and what the path packed; and the gradients of A, B and router of each member and, last, of x.


def _flat_forward(
    x: Tensor, tensors: Sequence[Tensor | None], token_mask: Tensor | None, seed: Tensor | None,
    members: int, residual: bool, base: bool, top_k: int, dropout: float, collect: bool,
) -> list[Tensor]:  # fmt: skip
    layout = _Layout(members, residual, base)
    result = _path(x).forward(
        x,
        layout.bases_of(tensors),
        layout.members_of(tensors),
        Settings(top_k, dropout, collect),
        token_mask,
        seed,
        True,
    )
    saved = result.saved
    statistics = x.new_empty(0) if result.statistics is None else result.statistics
    found = [*result.outputs, statistics, saved.hidden, saved.weights, saved.logits, *saved.packed]
    return [
        tensor.contiguous() for tensor in found
    ]  # as the fake kernel has them; a path may return a part of a wider product


def _flat_backward(
    grads: Sequence[Tensor], grad_statistics: Tensor | None, x: Tensor, tensors: Sequence[Tensor | None], saved: Sequence[Tensor],
    token_mask: Tensor | None, seed: Tensor | None,
    members: int, residual: bool, base: bool, top_k: int, dropout: float, collect: bool, needs_input_grad: bool,
) -> list[Tensor]:  # fmt: skip
    layout = _Layout(members, residual, base)
    hidden, weights, logits, *packed = saved
    found = _path(x).backward(
        list(grads), grad_statistics, x, layout.bases_of(tensors), layout.members_of(tensors), Saved(hidden, weights, logits, packed),
        Settings(top_k, dropout, collect), token_mask, seed, needs_input_grad,
    )  # fmt: skip
    apart = [
        gradient.clone() for gradient in (*found.A, *found.B, *found.router)
    ]  # an operator's results may not share memory
    return [*apart, x.new_empty(0) if found.x is None else found.x]


# Registered below `torch.library.custom_op`, whose checks on every call cost the host as much as the operator itself.
_library = torch.library.Library("goat_peft", "DEF")


def _define(name: str, implementation: Callable[..., list[Tensor]]) -> Any:
    schema = torch.library.infer_schema(implementation, mutates_args=())
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(torch.ops.goat_peft, name).default


forward_op = _define("routed_linears", _flat_forward)
backward_op = _define("routed_linears_backward", _flat_backward)


@torch.library.register_fake("goat_peft::routed_linears", lib=_library)
def _(
    x: Any,
    tensors: Any,
    token_mask: Any,
    seed: Any,
    members: int,
    residual: bool,
    base: bool,
    top_k: int,
    dropout: float,
    collect: bool,
) -> list[Tensor]:
    experts = _Layout(members, residual, base).members_of(tensors)
    tokens, (num_experts, _), r = x.shape[0], experts[0].router.shape, experts[0].A.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    routing = (members, tokens, num_experts)
    return [
        *(x.new_empty(tokens, member.B.shape[0]) for member in experts),
        x.new_empty(members, _path(x).blocks(tokens, experts[0]), 2 * num_experts + 2, dtype=wide)
        if collect
        else x.new_empty(0),
        x.new_empty(members, tokens, r),
        x.new_empty(routing, dtype=wide),
        x.new_empty(routing, dtype=wide),
        *(x.new_empty(shape) for shape in _path(x).packed_shapes(experts, x.dtype)),
    ]


@torch.library.register_fake("goat_peft::routed_linears_backward", lib=_library)
def _(
    grads: Any, grad_statistics: Any, x: Any, tensors: Any, saved: Any, token_mask: Any, seed: Any, members: int, residual: bool, base: bool,
    top_k: int, dropout: float, collect: bool, needs_input_grad: bool,
) -> list[Tensor]:  # fmt: skip
    return [
        *(torch.empty_like(tensor) for tensor in tensors[: 3 * members]),
        torch.empty_like(x) if needs_input_grad else x.new_empty(0),
    ]


class _RoutedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: _Layout,
        settings: Settings,
        x: Tensor,
        token_mask: Tensor | None,
        seed: Tensor | None,
        *tensors: Any,
    ) -> Any:
        count = len(tensors) - (layout.members if layout.below else 0)
        tensors, below = tensors[:count], tensors[count:]
        if torch.compiler.is_compiling():
            result = _compiled_forward(x, list(tensors), token_mask, seed, layout, settings)
        else:
            result = _path(x).forward(
                x,
                layout.bases_of(tensors),
                layout.members_of(tensors),
                settings,
                token_mask,
                seed,
                True,
                list(below) or None,
            )
        saved = result.saved
        ctx.save_for_backward(x, seed, saved.hidden, saved.weights, saved.logits, *saved.packed, *tensors)
        ctx.token_mask = (
            token_mask  # not saved: a checkpoint's second forward knows no mask, and that of this call must count
        )
        ctx.layout, ctx.settings, ctx.packed = layout, settings, len(saved.packed)
        statistics = x.new_empty(0) if result.statistics is None else result.statistics
        if below:
            ctx.mark_dirty(*below)
            return statistics, *below
        return statistics, *result.outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_statistics: Tensor, *grads: Tensor) -> Any:  # type: ignore[override]
        layout, settings, token_mask, after = ctx.layout, ctx.settings, ctx.token_mask, 5 + ctx.packed
        x, seed, hidden, weights, logits, *rest = ctx.saved_tensors
        packed, tensors = list(rest[: after - 5]), list(rest[after - 5 :])
        needs_x = ctx.needs_input_grad[2]
        statistics = grad_statistics if settings.collect else None
        if torch.compiler.is_compiling():
            found = _compiled_backward(
                grads,
                statistics,
                x,
                tensors,
                [hidden, weights, logits, *packed],
                token_mask,
                seed,
                layout,
                settings,
                needs_x,
            )
        else:
            found = _path(x).backward(
                list(grads), statistics, x, layout.bases_of(tensors), layout.members_of(tensors), Saved(hidden, weights, logits, packed),
                settings, token_mask, seed, needs_x,
            )  # fmt: skip
        return (
            None,
            None,
            found.x,
            None,
            None,
            *found.A,
            *found.B,
            *found.router,
            *[None] * (len(tensors) - 3 * layout.members),
            *(grads if layout.below else ()),
        )


def _compiled_forward(
    x: Tensor, tensors: list, token_mask: Tensor | None, seed: Tensor | None, layout: _Layout, settings: Settings
) -> Result:
    flat = forward_op(
        x,
        tensors,
        token_mask,
        seed,
        layout.members,
        layout.residual,
        layout.base,
        settings.top_k,
        settings.dropout,
        settings.collect,
    )
    outputs, (statistics, hidden, weights, logits, *packed) = flat[: layout.members], flat[layout.members :]
    return Result(outputs, statistics if settings.collect else None, Saved(hidden, weights, logits, packed))


def _compiled_backward(
    grads: Any,
    statistics: Any,
    x: Tensor,
    tensors: list,
    saved: list,
    token_mask: Any,
    seed: Any,
    layout: _Layout,
    settings: Settings,
    needs_x: bool,
) -> Gradients:
    flat = backward_op(
        list(grads), statistics, x, tensors, saved, token_mask, seed, layout.members, layout.residual, layout.base,
        settings.top_k, settings.dropout, settings.collect, needs_x,
    )  # fmt: skip
    n = layout.members
    return Gradients(flat[3 * n] if needs_x else None, flat[:n], flat[n : 2 * n], flat[2 * n : 3 * n])


def routed_linears(
    x: Tensor,
    members: list[Experts],
    settings: Settings,
    token_mask: Tensor | None = None,
    bases: list[Base] | None = None,
    below: list[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """What `routed_experts_reference` computes, for each member of a group that reads x; with `bases`, each base's output plus that.

    With `below`, one (tokens, m) for each member, it is added to those in place, which saves a tensor as large and a pass over both: outputs of
    bases that compute themselves, in x's dtype, contiguous and no views. Their gradients pass through. Not inside `torch.compile`.

    Exact, no loop over experts, no host synchronisation, about the cost of LoRA of the same rank. Computes in x's dtype, which the bases' weights
    must share; the router in float32 at least. Dropout acts on the experts' input alone, with a mask that the backward draws again. Members share
    r, E, and whether they have a residual.

    Returns an output (..., m) for each member, and the statistics (N, blocks, 2 E + 2), None unless collected: to be summed over blocks of tokens.
    Only their sums of p carry a gradient, and it has to be the same for every block, as summing makes it.
    """
    tokens = x.reshape(-1, x.shape[-1])
    mask = None if token_mask is None else token_mask.reshape(-1).contiguous()  # kernels step through it by one
    seed = torch.randint(0, 2**31 - 1, (1,), device=x.device) if settings.dropout > 0 else None
    layout = _Layout(len(members), members[0].residual_A is not None, bases is not None, below is not None)
    with torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext():
        if torch.is_grad_enabled() and (
            x.requires_grad or any(e.A.requires_grad or e.B.requires_grad or e.router.requires_grad for e in members)
        ):
            statistics, *outputs = _RoutedLinears.apply(
                layout, settings, tokens, mask, seed, *_flat(members, bases), *(below or ())
            )
        elif torch.compiler.is_compiling():
            result = _compiled_forward(tokens, _flat(members, bases), mask, seed, layout, settings)
            statistics, outputs = result.statistics, result.outputs
        else:
            result = _path(x).forward(tokens, bases, members, settings, mask, seed, False, below)
            statistics, outputs = result.statistics, result.outputs
    if x.dim() != 2:
        outputs = [output.reshape(*x.shape[:-1], output.shape[-1]) for output in outputs]
    return outputs, statistics if settings.collect else None


def _flat(members: list[Experts], bases: list[Base] | None) -> list[Tensor | None]:
    flat: list[Tensor | None] = [
        *(e.A for e in members),
        *(e.B for e in members),
        *(e.router for e in members),
        *(e.scale for e in members),
    ]
    if members[0].residual_A is not None:
        flat += [*(e.residual_A for e in members), *(e.residual_B for e in members)]
    if bases is not None:
        flat += [*(base.weight for base in bases), *(base.bias for base in bases)]
    return flat


def routed_experts(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    router: Tensor,
    scale: Tensor,
    residual_A: Tensor | None,
    residual_B: Tensor | None,
    top_k: int,
    token_mask: Tensor | None = None,
    dropout: float = 0.0,
    collect: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`routed_linears` for one linear, with the arguments of `routed_experts_reference`: output (..., m) and statistics (2 E + 2,) or None."""
    experts = Experts(A, B, router, scale, residual_A, residual_B)
    bases = None if weight is None else [Base(weight, bias)]
    outputs, statistics = routed_linears(x, [experts], Settings(top_k, dropout, collect), token_mask, bases)
    return outputs[0], None if statistics is None else statistics[0].sum(0)
