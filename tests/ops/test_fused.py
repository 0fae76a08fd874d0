"""The Triton path against the per-expert reference in float64: forward, decoding and every gradient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from goat_peft.ops import Base, Experts, Settings, routed_experts_reference, routed_linears, use_path

# the interpreter cannot multiply bfloat16; a GPU can
SIXTEEN = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TOLERANCE = {torch.float32: 1e-5, SIXTEEN: 1e-2}


@dataclass
class Case:
    tokens: int
    n: int
    out: tuple[int, ...]
    experts: int
    rank: int
    top_k: int
    residual: bool = True
    base: bool = True
    masked: bool = True


CASES = [
    Case(37, 40, (24,), 8, 4, 2),
    Case(16, 64, (64,), 8, 1, 2, base=False, masked=False),
    Case(23, 33, (50,), 4, 3, 4, residual=False),
    Case(19, 48, (20,), 1, 8, 1),
    Case(9, 32, (32,), 16, 2, 5),
    Case(20, 70, (40,), 2, 64, 2),
    Case(18, 32, (24,), 64, 1, 7),
    Case(5, 32, (24,), 64, 1, 64),
    Case(21, 48, (24, 32, 16), 4, 2, 2),
    Case(17, 33, (24, 40), 3, 3, 3, base=False),
    Case(18, 32, (16, 8, 8, 24), 2, 4, 1, residual=False, masked=False),
]

WIDE = Case(9, 32, (24, 16, 8), 2, 32, 1)  # 192 columns: more than the dropout kernels take at a time


@dataclass
class Tensors:
    x: Tensor
    members: list[Experts]
    bases: list[Base] | None
    mask: Tensor | None
    grads: list[Tensor]
    grad_p: Tensor

    def copy(self, dtype: torch.dtype, wide: torch.dtype) -> Tensors:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().to(wide).requires_grad_()

        members = [
            Experts(
                leaf(e.A), leaf(e.B), leaf(e.router), e.scale.to(wide), _to(e.residual_A, wide), _to(e.residual_B, wide)
            )
            for e in self.members
        ]
        bases = None if self.bases is None else [Base(b.weight.to(dtype), _to(b.bias, dtype)) for b in self.bases]
        return Tensors(
            self.x.detach().clone().to(dtype).requires_grad_(), members, bases, self.mask, self.grads, self.grad_p
        )

    def gradients(self) -> list[Tensor]:
        return [self.x.grad, *(t.grad for e in self.members for t in (e.A, e.B, e.router))]


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def draw(case: Case, device: str, dtype: torch.dtype) -> Tensors:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float64)

    r, n = case.experts * case.rank, case.n
    members = [
        Experts(
            normal(r, n) / n**0.5,
            normal(m, r) / r**0.5,
            normal(case.experts, n) * 3 / n**0.5,
            torch.rand(case.experts, device=device, dtype=torch.float64) + 0.5,
            normal(r, n) / n**0.5 if case.residual else None,
            normal(m, r) / r**0.5 if case.residual else None,
        )
        for m in case.out
    ]
    # values that the narrow dtype holds exactly, so that only the arithmetic differs
    bases = (
        [Base((normal(m, n) / n**0.5).to(dtype).double(), normal(m).to(dtype).double()) for m in case.out]
        if case.base
        else None
    )
    x = normal(case.tokens, n).to(dtype).double()
    mask = torch.rand(case.tokens, device=device) > 0.3 if case.masked else None
    grads = [normal(case.tokens, m).to(dtype).double() for m in case.out]
    return Tensors(x, members, bases, mask, grads, normal(len(case.out), case.experts))


def run(tensors: Tensors, outputs: list[Tensor], sums_of_p: Tensor) -> None:
    loss = sum((output.double() * grad).sum() for output, grad in zip(outputs, tensors.grads, strict=True))
    (loss + (sums_of_p.double() * tensors.grad_p).sum()).backward()


def expected(tensors: Tensors, case: Case) -> tuple[list[Tensor], Tensor]:
    outputs, statistics = [], []
    for index, e in enumerate(tensors.members):
        output, found = routed_experts_reference(tensors.x, *e, case.top_k, tensors.mask)
        if tensors.bases is not None:
            output = output + tensors.x @ tensors.bases[index].weight.T + tensors.bases[index].bias
        outputs.append(output)
        statistics.append(found)
    return outputs, torch.stack(statistics)


def error(found: Tensor, wanted: Tensor) -> float:
    assert torch.isfinite(found).all()
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_every_gradient(case: Case, dtype: torch.dtype, device: str) -> None:
    drawn = draw(case, device, dtype)
    exact, fast = drawn.copy(torch.float64, torch.float64), drawn.copy(dtype, torch.float32)
    outputs, statistics = expected(exact, case)
    run(exact, outputs, statistics[:, : case.experts])
    with use_path("triton"):
        found, found_statistics = routed_linears(
            fast.x, fast.members, Settings(case.top_k, 0.0, True), fast.mask, fast.bases
        )
        found_statistics = found_statistics.sum(1)
        run(fast, found, found_statistics[:, : case.experts])
    for got, wanted in zip(
        [*found, found_statistics, *fast.gradients()], [*outputs, statistics, *exact.gradients()], strict=True
    ):
        assert error(got, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoding(case: Case, dtype: torch.dtype, device: str) -> None:
    drawn = draw(case, device, dtype)
    drawn.x = drawn.x[:3]
    exact, fast = drawn.copy(torch.float64, torch.float64), drawn.copy(dtype, torch.float32)
    exact.mask = None
    wanted, _ = expected(exact, case)
    with use_path("triton"), torch.no_grad():
        found, _ = routed_linears(fast.x, fast.members, Settings(case.top_k, 0.0, False), None, fast.bases)
    for got, output in zip(found, wanted, strict=True):
        assert error(got, output) < TOLERANCE[dtype]


def kernel_mask(tokens: int, n: int, dropout: float, seed: int, device: str) -> Tensor:
    """The mask the kernels draw, seen through an expert that is the identity."""
    eye = torch.eye(n, device=device)
    identity = Experts(eye, eye, torch.zeros(1, n, device=device), torch.ones(1, device=device), None, None)
    from goat_peft.ops import fused

    with torch.enable_grad():
        seed_tensor = torch.tensor([seed], device=device)
        return fused.forward(
            torch.ones(tokens, n, device=device), None, [identity], Settings(1, dropout, False), None, seed_tensor, True
        ).outputs[0]


@pytest.mark.parametrize("case", [CASES[0], CASES[8], WIDE], ids=str)
def test_dropout_draws_the_same_mask_in_forward_and_backward(case: Case, device: str) -> None:
    from goat_peft.ops import dense, fused

    drawn = draw(case, device, torch.float32).copy(torch.float32, torch.float32)
    seed, settings = torch.tensor([12345], device=device), Settings(case.top_k, 0.3, True)
    mask = kernel_mask(case.tokens, case.n, 0.3, 12345, device)
    original, dense.dropout_mask = dense.dropout_mask, lambda *_: mask
    try:
        with torch.no_grad():
            slow = dense.forward(drawn.x, drawn.bases, drawn.members, settings, drawn.mask, seed, True)
            grads, grad_statistics = [g.float() for g in drawn.grads], torch.ones_like(slow.statistics)
            slow_back = dense.backward(
                grads,
                grad_statistics,
                drawn.x,
                drawn.bases,
                drawn.members,
                slow.saved,
                settings,
                drawn.mask,
                seed,
                True,
            )
            fast = fused.forward(drawn.x, drawn.bases, drawn.members, settings, drawn.mask, seed, True)
            fast_back = fused.backward(
                grads,
                torch.ones_like(fast.statistics),
                drawn.x,
                drawn.bases,
                drawn.members,
                fast.saved,
                settings,
                drawn.mask,
                seed,
                True,
            )
    finally:
        dense.dropout_mask = original
    wanted = [*slow.outputs, slow_back.x, *slow_back.A, *slow_back.B, *slow_back.router]
    found = [*fast.outputs, fast_back.x, *fast_back.A, *fast_back.B, *fast_back.router]
    for got, output in zip(found, wanted, strict=True):
        assert error(got, output) < 1e-5


def test_dropout_keeps_the_share_it_should(device: str) -> None:
    mask = kernel_mask(200, 64, 0.3, 7, device)
    assert sorted(mask.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert (mask > 0).double().mean().item() == pytest.approx(0.7, abs=0.02)
    assert not torch.equal(mask, kernel_mask(200, 64, 0.3, 8, device))


def test_the_router_keeps_the_precision_of_float32_in_sixteen_bits(device: str) -> None:
    """Rounding the router to 16 bits would move logits by about 1e-3; its remainder puts that back."""
    case = Case(64, 96, (8,), 4, 2, 2, base=False, masked=False)
    drawn = draw(case, device, SIXTEEN).copy(SIXTEEN, torch.float32)
    with use_path("triton"):
        from goat_peft.ops import fused

        with torch.enable_grad():
            logits = fused.forward(
                drawn.x.detach(), None, drawn.members, Settings(2, 0.0, True), None, None, True
            ).saved.logits[0]
    wanted = drawn.x.double() @ drawn.members[0].router.double().T
    assert error(logits, wanted) < 2e-5


@pytest.mark.parametrize("path", ["torch", "triton"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_of_a_router_that_is_nearly_sure(path: str, top_k: int, device: str) -> None:
    """Logits are whole numbers, so that float32 holds them exactly; what differs is the way back through the softmax."""
    case = Case(40, 8, (16,), 4, 2, top_k, residual=False, base=False, masked=False)
    drawn = draw(case, device, torch.float32)
    drawn.x = torch.randint(-2, 3, (40, 8), device=device).double()
    router = torch.randint(-1, 2, (4, 8), device=device).double()
    drawn.x[:, 0], router[:, 0], router[0, 0] = 2, 0, 6  # the first expert leads by about 12
    drawn.members[0] = drawn.members[0]._replace(router=router)
    exact, fast = drawn.copy(torch.float64, torch.float64), drawn.copy(torch.float32, torch.float32)
    _, statistics = expected(exact, case)
    (statistics[:, :4] * drawn.grad_p).sum().backward()
    with use_path(path):
        _, found = routed_linears(fast.x, fast.members, Settings(top_k, 0.0, True))
        (found.sum(1)[:, :4].double() * drawn.grad_p).sum().backward()
    assert error(fast.members[0].router.grad, exact.members[0].router.grad) < 1e-6


def test_more_slots_than_decoding_takes_at_a_time(device: str) -> None:
    case = Case(3, 32, (24,), 8, 32, 2)
    drawn = draw(case, device, torch.float32).copy(torch.float32, torch.float32)
    with torch.no_grad():
        found = {}
        for path in ("torch", "triton"):
            with use_path(path):
                found[path], _ = routed_linears(drawn.x, drawn.members, Settings(2, 0.0, False), bases=drawn.bases)
    assert error(found["triton"][0], found["torch"][0]) < 1e-5


def test_statistics_of_a_mask_that_is_a_column(device: str) -> None:
    drawn = draw(CASES[0], device, torch.float32).copy(torch.float32, torch.float32)
    mask = torch.randint(0, 2, (37, 5), device=device)[:, -1]
    counted = {}
    for path in ("torch", "triton"):
        with use_path(path):
            statistics = routed_linears(drawn.x, drawn.members, Settings(2, 0.0, True), mask)[1]
        counted[path] = statistics.sum(1)
    assert float(counted["torch"][0, -1]) == mask.sum()
    assert error(counted["triton"], counted["torch"]) < 1e-5


def test_a_gradient_of_statistics_without_strides(device: str) -> None:
    drawn = draw(CASES[0], device, torch.float32).copy(torch.float32, torch.float32)
    with use_path("triton"):
        statistics = routed_linears(drawn.x, drawn.members, Settings(2, 0.0, True))[1]
    (grad,) = torch.autograd.grad(
        statistics.sum(), drawn.members[0].router
    )  # probabilities sum to 1 whatever the router
    assert grad.abs().max() < 1e-5


def test_no_tokens_with_dropout(device: str) -> None:
    drawn = draw(CASES[0], device, torch.float32).copy(torch.float32, torch.float32)
    empty = drawn.x[:0].detach().requires_grad_()
    with use_path("triton"):
        outputs, _ = routed_linears(empty, drawn.members, Settings(2, 0.3, False), bases=drawn.bases)
    assert outputs[0].shape == (0, 24)
    grads = torch.autograd.grad(outputs[0].sum(), [empty, drawn.members[0].A, drawn.members[0].B])
    assert all(not grad.any() for grad in grads)
