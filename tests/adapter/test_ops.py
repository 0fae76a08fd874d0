"""The operator against the per-expert reference and an independent einsum, forward and every gradient, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from goat_peft import GoatConfig
from goat_peft.ops import routed_experts, routed_experts_reference

CASES = [(E, k) for E in (1, 2, 4, 8, 16) for k in range(1, E + 1) if E < 16 or k in (1, 2, 5, 16)]
LEAVES = ("x", "A", "B", "router")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def einsum_formulation(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    router: Tensor,
    scale: Tensor,
    residual_A: Any,
    residual_B: Any,
    top_k: int,
    token_mask: Any,
) -> tuple[Tensor, Tensor]:
    """The same equations through whole (E, ...) tensors and a threshold on the logits instead of top-k indices."""
    E, (m, r) = router.shape[0], B.shape
    d = r // E
    tokens = x.reshape(-1, x.shape[-1])
    z = torch.einsum("tn,en->te", tokens, router)
    threshold = z.sort(dim=-1, descending=True).values[:, top_k - 1 : top_k]
    active = z >= threshold
    exponents = (z - z.max(-1, keepdim=True).values).exp()
    p = exponents / exponents.sum(-1, keepdim=True)
    w = p * active / (p * active).sum(-1, keepdim=True)

    def products(A: Tensor, B: Tensor) -> Tensor:
        return torch.einsum("mei,ein->emn", B.reshape(m, E, d), A.reshape(E, d, -1))

    y = torch.einsum("te,e,emn,tn->tm", w, scale, products(A, B), tokens)
    if residual_A is not None:
        y = y - torch.einsum("e,emn,tn->tm", scale / E, products(residual_A, residual_B), tokens)
    counted = torch.ones(len(tokens), dtype=x.dtype) if token_mask is None else token_mask.reshape(-1).to(x.dtype)
    entropy = -(p * p.log()).sum(-1)
    statistics = torch.cat([counted @ p, counted @ active.to(x.dtype), (counted @ entropy)[None], counted.sum()[None]])
    return y.reshape(*x.shape[:-1], m), statistics


def problem(
    E: int, d: int, n: int, m: int, shape: tuple[int, ...], residual: bool, masked: bool, seed: int = 0
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=g)

    return {
        "x": draw(*shape, n),
        "A": draw(E * d, n),
        "B": draw(m, E * d),
        "router": draw(E, n),
        "scale": draw(E).abs() + 0.5,
        "residual_A": draw(E * d, n) if residual else None,
        "residual_B": draw(m, E * d) if residual else None,
        "token_mask": (torch.rand(shape, generator=g) < 0.6) if masked else None,
    }


def outcome(function: Any, inputs: dict[str, Any], top_k: int, **extra: Any) -> dict[str, Tensor]:
    """Output, statistics and gradients of a random projection of both outputs; only the sums of p are differentiated."""
    inputs = inputs | {name: inputs[name].clone().requires_grad_() for name in LEAVES}
    output, statistics = function(**inputs, top_k=top_k, **extra)
    g = torch.Generator().manual_seed(99)
    along = torch.randn(output.shape, dtype=output.dtype, generator=g)
    E = inputs["router"].shape[0]
    along_p = torch.randn(E, dtype=output.dtype, generator=g)
    grads = torch.autograd.grad(
        (output * along).sum() + (statistics[:E] * along_p).sum(), [inputs[name] for name in LEAVES]
    )
    return {"output": output.detach(), "statistics": statistics.detach()} | dict(zip(LEAVES, grads, strict=True))


def check(inputs: dict[str, Any], top_k: int) -> None:
    found = outcome(routed_experts, inputs, top_k, dropout=0.0, collect=True)
    for formulation in (routed_experts_reference, einsum_formulation):
        expected = outcome(formulation, inputs, top_k)
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, **TOLERANCE, msg=lambda m, name=f"{formulation.__name__} {name}": f"{name}: {m}"
            )


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("E", "k"), CASES)
def test_forward_and_gradients_for_every_routing(E: int, k: int, masked: bool, residual: bool) -> None:
    check(problem(E, d=2, n=11, m=7, shape=(2, 5), residual=residual, masked=masked), top_k=k)


@pytest.mark.parametrize("d", [1, 3, 4])
@pytest.mark.parametrize(("n", "m"), [(5, 17), (17, 5), (9, 9)])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 3)], ids=["2-D", "3-D", "4-D"])
def test_forward_and_gradients_for_every_shape(shape: tuple[int, ...], n: int, m: int, d: int) -> None:
    check(problem(4, d=d, n=n, m=m, shape=shape, residual=True, masked=True), top_k=2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [3, 60], ids=["residual apart", "residual inside the base's weight"])
def test_together_with_the_base_s_product(tokens: int, dropout: float) -> None:
    inputs = problem(4, d=2, n=9, m=11, shape=(tokens,), residual=True, masked=True)
    weight, bias = torch.randn(11, 9, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    before = weight.clone()
    torch.manual_seed(0)
    together = outcome(routed_experts, inputs, 2, dropout=dropout, weight=weight, bias=bias)
    torch.manual_seed(0)  # dropout draws the same mask
    apart = outcome(routed_experts, inputs, 2, dropout=dropout)
    assert torch.equal(weight, before)
    g = torch.Generator().manual_seed(99)
    along = torch.randn(apart["output"].shape, dtype=torch.float64, generator=g)
    torch.testing.assert_close(together["output"], apart["output"] + inputs["x"] @ weight.T + bias, **TOLERANCE)
    torch.testing.assert_close(together["x"], apart["x"] + along @ weight, **TOLERANCE)
    for name in ("statistics", "A", "B", "router"):
        torch.testing.assert_close(together[name], apart[name], **TOLERANCE)


def test_strided_input() -> None:
    inputs = problem(4, d=2, n=6, m=5, shape=(3, 4), residual=True, masked=True)
    inputs["x"] = inputs["x"].transpose(0, 1)
    inputs["token_mask"] = inputs["token_mask"].T
    check(inputs, top_k=2)


def test_exactly_k_experts_of_a_token_contribute() -> None:
    inputs = problem(8, d=1, n=6, m=5, shape=(7,), residual=False, masked=False)
    _, statistics = routed_experts(**inputs, top_k=3)
    assert statistics[8:16].sum() == 7 * 3
    assert torch.equal(statistics[8:16], statistics[8:16].round())


def test_statistics_only_when_asked_for_and_output_the_same() -> None:
    inputs = problem(4, d=2, n=6, m=5, shape=(7,), residual=True, masked=False)
    with_statistics, statistics = routed_experts(**inputs, top_k=2, collect=True)
    without, nothing = routed_experts(**inputs, top_k=2, collect=False)
    assert statistics is not None and nothing is None
    assert torch.equal(with_statistics, without)


def test_gradients_without_the_input_and_without_statistics() -> None:
    """The first linear of a model gets an input that needs no gradient."""
    inputs = problem(4, d=2, n=6, m=5, shape=(7,), residual=True, masked=False)
    leaves = ("A", "B", "router")
    results = []
    for function in (routed_experts, routed_experts_reference):
        given = inputs | {name: inputs[name].clone().requires_grad_() for name in leaves}
        output, _ = function(**given, top_k=2)
        results.append(torch.autograd.grad(output.pow(2).sum(), [given[name] for name in leaves]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_dropout_acts_on_the_experts_alone_and_keeps_the_mean() -> None:
    inputs = problem(4, d=2, n=6, m=5, shape=(3,), residual=True, masked=False)
    clean, statistics = routed_experts(**inputs, top_k=2)
    draws = [routed_experts(**inputs, top_k=2, dropout=0.3) for _ in range(3000)]
    outputs = torch.stack([output for output, _ in draws])
    for _, drawn in draws[:5]:
        torch.testing.assert_close(drawn, statistics)  # the router sees the input itself
    error = (outputs.mean(0) - clean).abs() / (outputs.std(0) / len(draws) ** 0.5)
    assert error.max() < 5
    silent = routed_experts(**(inputs | {"A": torch.zeros_like(inputs["A"])}), top_k=2, dropout=0.3)[0]
    expected = routed_experts(**(inputs | {"A": torch.zeros_like(inputs["A"])}), top_k=2)[0]
    torch.testing.assert_close(silent, expected)  # and so does the residual


def test_dropout_gradient_uses_the_mask_of_its_forward() -> None:
    inputs = problem(2, d=2, n=6, m=5, shape=(4,), residual=True, masked=False)
    x, A = inputs["x"], inputs["A"].clone().requires_grad_()
    torch.manual_seed(5)
    output, _ = routed_experts(**(inputs | {"A": A}), top_k=1, dropout=0.5)
    (gradient,) = torch.autograd.grad(output.sum(), A)
    # the output is linear in A apart from the residual, so <gradient, A> is the experts' part of the output's sum
    fixed, _ = routed_experts(**(inputs | {"A": torch.zeros_like(A), "x": x}), top_k=1)
    torch.testing.assert_close((gradient * A.detach()).sum(), (output.detach() - fixed).sum())


def test_bfloat16_stays_near_float64_and_routes_in_float32() -> None:
    inputs = problem(8, d=2, n=32, m=16, shape=(40,), residual=True, masked=False)
    low = {name: t.bfloat16() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in inputs.items()}
    low["router"], low["scale"] = low["router"].float(), inputs["scale"].float()
    exact = {name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in low.items()}
    output, statistics = routed_experts(**low, top_k=2)
    expected, expected_statistics = routed_experts_reference(**exact, top_k=2)
    assert output.dtype == torch.bfloat16 and statistics.dtype == torch.float32
    torch.testing.assert_close(statistics.double(), expected_statistics, rtol=1e-5, atol=1e-4)
    relative = (output.double() - expected).norm() / expected.norm()
    assert relative < 0.02


@pytest.mark.parametrize("router", ["topk", "softmax"])
def test_shapes_on_the_meta_device(router: str) -> None:
    with torch.device("meta"):
        base = nn.Sequential(nn.Linear(16, 24))
    config = GoatConfig(r=4, num_experts=2, router=router, target_modules=["0"])
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    assert model(torch.empty(3, 16, device="meta")).shape == (3, 24)
