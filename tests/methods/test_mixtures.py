"""Each LoRA-MoE preset against an independent implementation, one expert and one token at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from goat_peft import GoatConfig

N, M, TOKENS = 12, 10, 9


class Small(nn.Module):
    """One linear in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(N, M, dtype=torch.float64)

    def forward(self, X: Tensor) -> Tensor:
        return self.lin(X)


def adapted(preset: str, **overrides: object) -> PeftModel:
    """A seeded linear with the preset's adapter, B away from zero so that every gradient is."""
    torch.manual_seed(0)
    settings = {"r": 8, "num_experts": 4, "lora_dropout": 0.0, "target_modules": ["lin"], **overrides}
    model = get_peft_model(Small(), GoatConfig.from_preset(preset, **settings))
    layer = model.base_model.model.lin
    with torch.no_grad():
        layer.goat_B["default"].add_(torch.randn_like(layer.goat_B["default"]))
        layer.goat_router["default"].mul_(8)
    return model


def top_2(logits: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Softmax over the two largest logits of one token."""
    first, second = sorted(range(4), key=lambda i: -logits[i].item())[:2]
    total = logits[first].exp() + logits[second].exp()
    return torch.stack([logits[i].exp() / total if i in (first, second) else logits[i] * 0 for i in range(4)])


def dense(logits: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Softmax over all experts."""
    return logits.exp() / logits.exp().sum()


def above_threshold(logits: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """AdaMoLE: what each probability exceeds the threshold by, renormalised."""
    u, b = layer.goat_threshold["default"][:-1], layer.goat_threshold["default"][-1]
    tau = 1 / (1 + torch.exp(-(u @ x + b))) / 4
    p = logits.exp() / logits.exp().sum()
    above = [p[i] - tau for i in range(4)]
    total = sum(a for a in above if a >= 0)
    return torch.stack([a / total if a >= 0 else a * 0 for a in above])


def smallest_set(logits: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Top-p: add experts from the most probable down until they hold 0.6."""
    p = logits.exp() / logits.exp().sum()
    chosen: list[int] = []
    for i in sorted(range(4), key=lambda i: -p[i].item()):
        chosen.append(i)
        if sum(p[j].item() for j in chosen) >= 0.6:
            break
    return torch.stack([p[i] / p[chosen].sum() if i in chosen else p[i] * 0 for i in range(4)])


def by_hand(layer: nn.Module, x: Tensor, route: Callable[..., Tensor], scale: float, shared_A: bool) -> Tensor:
    """`W x + b + s sum_i w_i(x) B_i A_i x`, one token and one expert at a time; rank 2 each."""
    A, B, router = (getattr(layer, f"goat_{name}")["default"] for name in ("A", "B", "router"))
    rows = []
    for token in x:
        weights = route(router @ token, token, layer)
        row = layer.base_layer.weight @ token + layer.base_layer.bias
        for i in range(4):
            own = slice(2 * i, 2 * i + 2)
            row = row + scale * weights[i] * (B[:, own] @ (A if shared_A else A[own]) @ token)
        rows.append(row)
    return torch.stack(rows)


CASES = {
    "molora": ("molora", {}, top_2),
    "hydralora": ("hydralora", {}, dense),
    "adamole": ("adamole", {}, above_threshold),
    "top_p": ("molora", {"router": "top_p", "top_p": 0.6}, smallest_set),
}


@pytest.mark.parametrize("case", CASES)
def test_preset_equals_the_experts_computed_one_by_one(case: str) -> None:
    preset, overrides, route = CASES[case]
    model = adapted(preset, **overrides)
    layer = model.base_model.model.lin
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    x = torch.randn(TOKENS, N, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(TOKENS, M, dtype=torch.float64)
    wanted = by_hand(layer, x, route, scale=16 / 2, shared_A=case == "hydralora")
    expected = torch.autograd.grad((wanted * weight).sum(), [x, *trained.values()])
    output = model(x)
    found = torch.autograd.grad((output * weight).sum(), [x, *trained.values()])
    torch.testing.assert_close(output, wanted)
    for name, own, theirs in zip(["x", *trained], found, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(own, theirs, msg=name)


def test_shared_expert_serves_every_token_beside_the_routed_ones() -> None:
    model = adapted("molora", shared_experts=1, top_k=1)
    layer = model.base_model.model.lin
    assert layer.goat_router["default"].shape == (3, N)
    x = torch.randn(TOKENS, N, dtype=torch.float64)
    A, B, router = (getattr(layer, f"goat_{name}")["default"] for name in ("A", "B", "router"))
    rows = []
    for token in x:
        best = 1 + int((router @ token).argmax())
        pair = [B[:, 2 * i : 2 * i + 2] @ A[2 * i : 2 * i + 2] @ token for i in (0, best)]
        rows.append(layer.base_layer(token) + 8 * sum(pair))
    torch.testing.assert_close(model(x), torch.stack(rows))


def test_shared_expert_keeps_the_expected_output_with_segments() -> None:
    torch.manual_seed(0)
    config = GoatConfig(r=8, num_experts=4, top_k=1, shared_experts=1, target_modules=["lin"])
    model = get_peft_model(Small(), config)
    layer = model.base_model.model.lin
    x = torch.randn(4, N, dtype=torch.float64)
    outputs = []
    with torch.no_grad():
        for chosen in range(3):  # each routed expert in turn, for every token
            layer.goat_router["default"].zero_()
            direction = torch.linalg.lstsq(x, torch.ones(4, 1, dtype=torch.float64)).solution[:, 0]
            layer.goat_router["default"][chosen] = direction
            outputs.append(model(x))
    torch.testing.assert_close(torch.stack(outputs).mean(0), layer.base_layer(x))


def test_threshold_never_leaves_a_token_without_expert() -> None:
    from goat_peft.ops.routers import threshold_weights

    logits = torch.zeros(3, 8, requires_grad=True)
    cut = torch.tensor([0.0, 1e4, 1e9], requires_grad=True)  # the last two saturate: tau = 1/E = p
    weights = threshold_weights(logits, cut)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    weights.square().sum().backward()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(cut.grad).all()


@pytest.mark.parametrize("preset", ["molora", "hydralora", "adamole", "milora", "pissa"])
def test_preset_starts_as_the_base_and_survives_saving(preset: str, tmp_path) -> None:
    torch.manual_seed(0)
    overrides = {"r": 8, "target_modules": ["lin"], "lora_dropout": 0.0}
    if preset not in ("milora", "pissa"):
        overrides["num_experts"] = 4
    model = get_peft_model(Small(), GoatConfig.from_preset(preset, **overrides))
    x = torch.randn(5, N, dtype=torch.float64)
    torch.testing.assert_close(model(x), model.base_model.model.lin.base_layer(x))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "goat_" in name:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(Small(), tmp_path)
    assert torch.equal(again(x), model(x))
    kinds = {"goat_A", "goat_B", "goat_router"} | ({"goat_threshold"} if preset == "adamole" else set())
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == kinds


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"router": "top_3"}, "router"),
        ({"top_p": 0.0, "router": "top_p"}, "top_p"),
        ({"shared_A": True}, "shared_A"),
        ({"shared_experts": 8}, "shared_experts"),
        ({"shared_experts": 7, "top_k": 2}, "top_k"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=rf"GoatConfig\.{field}="):
        GoatConfig(**settings)


def test_balance_loss_of_the_threshold_router_is_one_when_balanced() -> None:
    from goat_peft.adapter.routing import layer_balance_loss

    even = torch.tensor([[10.0 / 4] * 4 + [7.0] * 4 + [1.0, 10.0]])  # p even, 28 slots of 10 tokens spread evenly
    assert layer_balance_loss(even, None).item() == pytest.approx(1.0)
    one = torch.tensor([[10.0, 0, 0, 0] + [10.0, 0, 0, 0] + [0.0, 10.0]])
    assert layer_balance_loss(one, None).item() == pytest.approx(4.0)


def test_dropout_acts_in_training_only() -> None:
    model = adapted("adamole", lora_dropout=0.5)
    x = torch.randn(TOKENS, N, dtype=torch.float64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
