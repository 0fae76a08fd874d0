"""The linear stand-in of routed experts, against the equations one expert at a time."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLayer
from goat_peft.export.factors import compressed, linear_factors
from goat_peft.export.lora import adapted_layers
from goat_peft.export.statistics import collect_statistics
from goat_peft.ops.reference import topk_weights_reference


def adapted(**overrides: object) -> nn.Module:
    """A tiny Llama in float64 whose experts and routers have moved from their start."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
        )
    ).double()  # fmt: skip
    model = get_peft_model(base, GoatConfig(**({"r": 8, "num_experts": 4, "top_k": 2} | overrides))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (1.0 if "router" in name else 0.1))
    return model


def calibrated(model: nn.Module) -> tuple[dict[str, GoatLayer], dict, dict[str, list[Tensor]], Tensor]:
    """Layers, statistics, each layer's inputs and the mask of a padded batch."""
    seen: dict[str, list[Tensor]] = {}
    layers = adapted_layers(model)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    ids = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with collect_statistics(model) as statistics, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    return layers, statistics, seen, mask.bool()


def routed(layer: GoatLayer, x: Tensor) -> Tensor:
    """`sum_i s_i w_i(x) B_i A_i x` of tokens x (T, n), expert by expert."""
    A, B, scale = layer.goat_A["default"], layer.goat_B["default"], layer.goat_scale["default"]
    weights = topk_weights_reference(x @ layer.goat_router["default"].T, 2)
    total = torch.zeros(len(x), B.shape[0], dtype=x.dtype)
    for i, (a, b) in enumerate(zip(A.chunk(4), B.chunk(4, dim=1), strict=True)):
        total += scale[i] * weights[:, i : i + 1] * (x @ a.T @ b.T)
    return total


@torch.no_grad()
def test_mean_weights_give_the_equation() -> None:
    model = adapted()
    layers, statistics, inputs, mask = calibrated(model)
    for name, layer in layers.items():
        x = inputs[name][0][mask]
        weights = topk_weights_reference(x @ layer.goat_router["default"].T, 2).mean(0)
        A, B, scale = layer.goat_A["default"], layer.goat_B["default"], layer.goat_scale["default"]
        A0, B0 = layer.goat_residual_A["default"], layer.goat_residual_B["default"]
        expected = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
        for i in range(4):
            rows = slice(2 * i, 2 * i + 2)
            expected += scale[i] * weights[i] * B[:, rows] @ A[rows] - scale[i] / 4 * B0[:, rows] @ A0[rows]
        found = linear_factors(layer, statistics[name], "mean")
        assert found.rank == 16 and statistics[name].tokens == 50  # padding is not counted
        torch.testing.assert_close(found.B @ found.A, expected)
        assert found.mean_weights == pytest.approx(weights.tolist(), abs=1e-6)


@torch.no_grad()
def test_the_error_is_the_mean_squared_distance_and_regression_has_the_least() -> None:
    model = adapted()
    layers, statistics, inputs, mask = calibrated(model)
    for name, layer in layers.items():
        x = inputs[name][0][mask]
        wanted = routed(layer, x)
        A, residual_rank = layer.goat_A["default"], 8
        errors = {}
        for weighting in ("mean", "regression"):
            found = linear_factors(layer, statistics[name], weighting)
            experts = x @ found.A[:-residual_rank].T @ found.B[:, :-residual_rank].T
            errors[weighting] = ((wanted - experts).square().sum() / wanted.square().sum()).item()
            assert found.error == pytest.approx(errors[weighting], rel=1e-3)
        u = x @ A.T
        best = u @ torch.linalg.lstsq(u, wanted).solution
        least = ((wanted - best).square().sum() / wanted.square().sum()).item()
        assert least - 1e-9 <= errors["regression"] < errors["mean"]
        assert errors["regression"] == pytest.approx(least, rel=0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_experts": 1, "top_k": 1},
        {"router": "softmax", "shared_A": True, "init_weights": "lora"},
        {"shared_experts": 1},
        {"router": "threshold"},
        {"router": "top_p", "top_p": 0.6},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_router_exports_and_one_expert_exports_exactly(overrides: dict) -> None:
    model = adapted(**overrides)
    layers, statistics, inputs, mask = calibrated(model)
    name, layer = next(iter(layers.items()))
    found = linear_factors(layer, statistics[name], "mean")
    x = inputs[name][0][mask]
    wanted = layer(x) - layer.base_layer(x)
    given = x @ found.A.T @ found.B.T
    if layer.configs["default"].num_experts == 1:
        torch.testing.assert_close(given, wanted)
        assert found.error == pytest.approx(0, abs=1e-9)
    else:
        own = (wanted - given).square().sum() / wanted.square().sum()
        assert own < 1.0  # better than no adapter
    if overrides.get("shared_A"):
        assert found.rank == 2  # the copies of the one A are folded, and there is no residual


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_compression_is_the_truncated_svd(rank: int) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(6, 20, dtype=torch.float64), torch.randn(15, 6, dtype=torch.float64)
    U, values, Vh = torch.linalg.svd(B @ A)
    kept = min(rank, 6)
    expected = U[:, :kept] * values[:kept] @ Vh[:kept]
    small_A, small_B = compressed(A, B, rank)
    assert small_A.shape == (rank, 20) and small_B.shape == (15, rank)
    torch.testing.assert_close(small_B @ small_A, expected)
