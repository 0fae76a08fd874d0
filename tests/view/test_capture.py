"""Captured routing weights are those that the layers used."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLinear
from goat_peft.adapter.capture import capture_routing

ROUTERS = {
    "topk": {"top_k": 2},
    "one": {"top_k": 1},
    "softmax": {"router": "softmax"},
    "threshold": {"router": "threshold"},
    "top_p": {"router": "top_p", "top_p": 0.6},
    "shared": {"shared_experts": 1, "top_k": 2},
    "shared A": {"router": "softmax", "shared_A": True, "init_weights": "lora"},
}


def adapted(**fields: object) -> nn.Module:
    """A small random encoder with four experts, moved away from their start."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    base = BertModel(BertConfig(vocab_size=32, max_position_embeddings=16, **sizes))
    config = GoatConfig(**({"r": 8, "num_experts": 4, "target_modules": "all-linear"} | fields))
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "goat_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        if "goat_router" in name:
            parameter.data *= 4  # decided routers, so that few experts reach a share of the probability
    return model


IDS = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fields", ROUTERS.values(), ids=ROUTERS)
def test_captured_weights_give_each_layer_s_output(fields: dict[str, object]) -> None:
    """The paper's sum, with the captured weights put in, is what the layer returned."""
    model = adapted(**fields)
    seen: dict[str, tuple[GoatLinear, Tensor, Tensor]] = {}
    for layer in model.modules():
        if isinstance(layer, GoatLinear):
            layer.register_forward_hook(lambda m, args, output: seen.update({m.name: (m, args[0], output)}))
    with torch.no_grad(), capture_routing(model) as found:
        model(IDS)
    assert set(found) == set(seen) and len(found) == 7
    for name, (layer, x, output) in seen.items():
        (routing,) = found[name]
        config, experts = layer.configs["default"], layer.experts("default")
        assert routing.weights.shape == (*x.shape[:-1], 4)
        expected = layer.base_layer(x)
        for i in range(4):
            rows = slice(2 * i, 2 * i + 2)
            start = 1.0 if i < config.shared_experts else 1 / config.routed_experts
            expected = expected + experts.scale[i] * routing.weights[..., i : i + 1] * (
                x @ experts.A[rows].T @ experts.B[:, rows].T
            )
            if experts.residual_A is not None:
                expected = expected - experts.scale[i] * start * (
                    x @ experts.residual_A[rows].T @ experts.residual_B[:, rows].T
                )
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", ROUTERS.values(), ids=ROUTERS)
def test_captured_weights_agree_with_the_usage_counts(fields: dict[str, object]) -> None:
    model = adapted(**fields)
    with torch.no_grad(), model.track_expert_usage(), capture_routing(model) as found:
        model(IDS)
        model(IDS[:2])
    for row in model.expert_usage():
        calls = found[row.layer]
        shared = model.peft_config["default"].shared_experts
        used = torch.cat([(call.weights.reshape(-1, 4)[:, shared:] > 0).float() for call in calls])
        probabilities = torch.cat([call.probabilities.reshape(-1, 4 - shared) for call in calls])
        assert len(used) == row.tokens
        assert row.share == pytest.approx((used.sum(0) / used.sum()).tolist())
        assert row.mean_probability == pytest.approx(probabilities.mean(0).tolist(), rel=1e-4)
        assert row.entropy == pytest.approx(-(probabilities * probabilities.log()).sum(1).mean().item(), rel=1e-4)


def test_nothing_is_captured_without_the_adapter_or_after_the_context() -> None:
    model = adapted()
    with torch.no_grad(), capture_routing(model) as found:
        with model.disable_adapter():
            model(IDS)
        assert found == {}
    with torch.no_grad():
        model(IDS)
    assert found == {}
    with torch.no_grad(), capture_routing(model, "other") as found:
        model(IDS)
    assert found == {}
