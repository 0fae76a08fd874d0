"""How experts start, against numpy's SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny import adapted, padded_batch, seeded, settings, tiny_gpt2, tiny_llama, token_batch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLinear
from goat_peft.adapter import layer as layer_module
from goat_peft.adapter.initialization import expert_scale, plain_factors, segment_factors, segment_starts
from goat_peft.adapter.routing import RoutingContext

SHAPES = [(24, 40), (40, 24), (32, 32)]


def numpy_segment(weight: Tensor, start: int, d: int) -> np.ndarray:
    """`U' S' V'^T` of d singular triplets from `start`, 0-based."""
    U, S, Vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    take = slice(start, start + d)
    return U[:, take] * S[take] @ Vh[take]


def starts_by_method(kind: str, h: int, E: int, d: int) -> list[int]:
    """METHOD section 1, restated 1-based and then shifted."""
    t = math.floor(h / E)
    return [{"goat": (j - 1) * t, "principal": (j - 1) * d, "minor": h - j * d}[kind] for j in range(1, E + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("E", "d"), [(1, 4), (4, 2), (8, 1), (8, 3)])
@pytest.mark.parametrize("kind", ["goat", "principal", "minor"])
def test_every_expert_holds_its_segment_over_rho(kind: str, E: int, d: int, m: int, n: int, dtype: torch.dtype) -> None:
    weight = torch.randn(m, n, dtype=dtype)
    config = settings(r=E * d, num_experts=E, top_k=1, init_weights=kind, rho=5.0)
    factors = segment_factors(weight, config)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for j, start in enumerate(starts_by_method(kind, min(m, n), E, d)):
        rows = slice(j * d, (j + 1) * d)
        product = factors.scale[j] * factors.B[:, rows] @ factors.A[rows]
        np.testing.assert_allclose(product.numpy(), numpy_segment(weight, start, d) / 5.0, atol=tolerance)
        # the root of the singular values is split evenly
        torch.testing.assert_close(factors.A[rows].norm(dim=1), factors.B[:, rows].norm(dim=0), rtol=1e-4, atol=1e-6)


def test_random_segments_start_at_multiples_of_d_and_differ_between_draws() -> None:
    config = settings(r=8, num_experts=4, init_weights="random")
    weight = torch.randn(24, 40, dtype=torch.float64)
    U, _, Vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    seen = set()
    for _ in range(30):
        factors = segment_factors(weight, config)
        for j in range(4):
            rows = slice(2 * j, 2 * j + 2)
            core = U.T @ (factors.scale[j] * config.rho * factors.B[:, rows] @ factors.A[rows]).numpy() @ Vh.T
            start = int(np.argmax(np.abs(np.diag(core)) > 1e-6))
            assert start % 2 == 0
            np.testing.assert_allclose(U @ core @ Vh, numpy_segment(weight, start, 2), atol=1e-10)
            seen.add(start)
    assert seen <= set(range(0, 24, 2)) and len(seen) > 8


def test_segment_starts_reject_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="goat, principal, minor or random"):
        segment_starts("lora", 16, 4, 2)


def test_segments_of_goat_may_overlap_on_a_small_weight_but_must_fit() -> None:
    """t = floor(h / E) is 0 below E: every expert starts at the largest triplet, as the formula says."""
    weight = torch.randn(3, 20, dtype=torch.float64)
    factors = segment_factors(weight, settings(r=8, num_experts=8))
    for j in range(8):
        product = factors.scale[j] * factors.B[:, j : j + 1] @ factors.A[j : j + 1]
        np.testing.assert_allclose(product.numpy(), numpy_segment(weight, 0, 1) / 10, atol=1e-12)
    for kind, r in (("goat", 32), ("principal", 8), ("minor", 8), ("random", 32)):
        with pytest.raises(ValueError, match=rf"GoatConfig.r={r}: module 'lin' is 3 x 20 .*only 3 singular triplets"):
            layer(nn.Linear(20, 3), settings(r=r, num_experts=8, init_weights=kind))


def test_singular_scaling_is_goat_s() -> None:
    """s_i = s_1 sqrt(sigma_1 / sigma_i), and the segments stay what they are."""
    weight = torch.randn(24, 40, dtype=torch.float64)
    config = settings(r=8, num_experts=4, expert_scaling="singular")
    factors = segment_factors(weight, config)
    S = np.linalg.svd(weight.numpy(), compute_uv=False)
    sigma = [S[j * 6 : j * 6 + 2].sum() for j in range(4)]
    s1 = math.sqrt(3 * 40 / 2)
    np.testing.assert_allclose(factors.scale.numpy(), [s1 * math.sqrt(sigma[0] / one) for one in sigma], rtol=1e-12)
    for j in range(4):
        product = factors.scale[j] * factors.B[:, 2 * j : 2 * j + 2] @ factors.A[2 * j : 2 * j + 2]
        np.testing.assert_allclose(product.numpy(), numpy_segment(weight, 6 * j, 2) / 10, atol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("paper", math.sqrt(3 * 48 * 0.5 / 2)), ("lora", 12 / 2), ("rslora", 12 / math.sqrt(2)), (3, 3.0), (0.25, 0.25)],
)
def test_scaling_rules(scaling: str | float, expected: float) -> None:
    config = settings(r=8, num_experts=4, scaling=scaling, eta=0.5, lora_alpha=12)
    assert expert_scale(config, 48) == pytest.approx(expected)


def test_plain_factors() -> None:
    config = settings(r=64, num_experts=4, init_weights="lora")
    factors = plain_factors(30, 200, config, torch.float64, torch.device("cpu"))
    assert not factors.B.any()
    assert factors.A.abs().max() <= 1 / math.sqrt(200)
    assert factors.A.var().item() == pytest.approx(1 / (3 * 200), rel=0.05)
    assert plain_factors(30, 200, settings(init_weights=False), torch.float64, torch.device("cpu")).B.any()


def layer(base: nn.Module, config: GoatConfig) -> GoatLinear:
    made = GoatLinear(base, "default", config, RoutingContext(), "lin")
    made.initialize("default")
    return made


def base_pair(kind: str, n: int, m: int) -> tuple[nn.Module, Tensor]:
    """A base linear and its weight as (m, n)."""
    if kind == "Conv1D":
        base = Conv1D(m, n).requires_grad_(False)
        nn.init.normal_(base.weight)
        return base, base.weight.detach().T
    base = nn.Linear(n, m).requires_grad_(False)
    return base, base.weight.detach()


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_layer_residual_is_the_mean_of_the_initial_experts(kind: str) -> None:
    """At step 0 the layer is W0 x + s sum_i (w_i - 1/E) B_i A_i x; the residual's product does not depend on s."""
    base, weight = base_pair(kind, 20, 28)
    made = layer(base.double(), settings(top_k=4))
    assert (made.in_features, made.out_features) == (20, 28)
    assert made.goat_A["default"].shape == (8, 20) and made.goat_B["default"].shape == (28, 8)
    residual = made.goat_scale["default"][0] / 4 * made.goat_residual_B["default"] @ made.goat_residual_A["default"]
    expected = sum(numpy_segment(weight, 5 * j, 2) for j in range(4)) / 40
    np.testing.assert_allclose(residual.numpy(), expected, atol=1e-6)
    x = torch.randn(6, 20, dtype=torch.float64)
    assert not torch.allclose(made(x), base(x))
    made.goat_router["default"].data.zero_()  # uniform routing
    torch.testing.assert_close(made(x), base(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["goat", "principal", "minor", "random"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_uniform_routing_starts_at_the_base(make, kind: str) -> None:
    batch = token_batch()
    base = seeded(make).eval()
    with torch.no_grad():
        expected = base(**batch).logits
        model = adapted(make, top_k=4, init_weights=kind).eval()
        assert not torch.allclose(model(**batch).logits, expected, atol=1e-5)
        for name, parameter in model.named_parameters():
            if "goat_router" in name:
                parameter.zero_()
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)


def test_lora_initialisation_is_the_identity_and_stores_no_residual() -> None:
    batch = padded_batch()
    model = adapted(init_weights="lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, seeded(tiny_llama).eval()(**batch).logits, rtol=0, atol=1e-6)
    assert not any("residual" in name for name in model.state_dict())


def test_random_draws_follow_the_seed() -> None:
    one, same, other = (adapted(init_weights="random", seed=seed).state_dict() for seed in (0, 0, 1))
    name = next(name for name in one if "goat_router" in name)
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_router_starts_as_a_linear_without_bias() -> None:
    router = layer(nn.Linear(400, 28), settings(num_experts=8, r=8)).goat_router["default"]
    assert router.dtype == torch.float32 and router.abs().max() <= 1 / math.sqrt(400)
    assert router.var().item() == pytest.approx(1 / (3 * 400), rel=0.1)


def test_a_router_from_zero_starts_at_the_base_and_learns() -> None:
    batch = token_batch()
    expected = seeded(tiny_llama).eval()(**batch).logits
    model = adapted(top_k=4, init_router="zero", init_weights="goat")
    layers = [module for module in model.modules() if isinstance(module, GoatLinear)]
    assert layers and all(layer.goat_B["default"].norm() > 0 for layer in layers)
    torch.testing.assert_close(model.eval()(**batch).logits, expected, rtol=0, atol=1e-6)
    model.train()(**batch).loss.backward()
    assert all(layer.goat_router["default"].grad.norm() > 0 for layer in layers)


def test_the_soft_preset_starts_at_the_base() -> None:
    batch = token_batch()
    expected = seeded(tiny_llama).eval()(**batch).logits
    model = get_peft_model(seeded(tiny_llama), GoatConfig.from_preset("soft", task_type="CAUSAL_LM")).eval()
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_are_float32_or_better_whatever_the_base(dtype: torch.dtype) -> None:
    base = nn.Linear(20, 28).to(dtype)
    made = layer(base, settings())
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("goat_A", "goat_B", "goat_router", "goat_residual_A", "goat_residual_B", "goat_scale"):
        assert getattr(made, name)["default"].dtype == expected
    product = made.goat_scale["default"][0] * made.goat_B["default"][:, :2] @ made.goat_A["default"][:2]
    np.testing.assert_allclose(
        product.detach().double().numpy(), numpy_segment(base.weight.detach(), 0, 2) / 10, atol=1e-5
    )


def test_base_weight_is_never_written() -> None:
    before = {name: t.clone() for name, t in seeded(tiny_llama).state_dict().items()}
    after = adapted().unload().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_interrupted_start_leaves_no_layer_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
    config = GoatConfig(r=4, num_experts=2, target_modules=["0", "1", "2"])
    original, calls = layer_module.cached_factors, []

    def stop(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(layer_module, "cached_factors", stop)
    with pytest.raises(KeyboardInterrupt):
        get_peft_model(model, config)
    tuned = [layer for layer in model if isinstance(layer, layer_module.GoatLayer)]
    assert len(tuned) == 3
    model(torch.randn(5, 16))
    for layer in tuned:
        assert (
            layer.goat_scale["default"].all()
            and layer.goat_A["default"].any()
            and layer.goat_base_sample["default"].any()
        )
        assert not layer.pending


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"^1: the base weight holds NaN or infinity"):
        get_peft_model(model, GoatConfig(r=4, num_experts=2, target_modules=["0", "1"]))
