"""Layers that read the same input compute together on the fused path, and nobody can tell."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from goat_peft import GoatConfig
from goat_peft.ops import use_path

LLAMA = LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)


@pytest.fixture
def model(device: str) -> nn.Module:
    base = LlamaForCausalLM(LLAMA).to(device)
    return get_peft_model(base, GoatConfig(r=8, num_experts=4, task_type="CAUSAL_LM")).train()


def step(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def tokens(device: str) -> Tensor:
    return torch.randint(1, 100, (2, 11), device=device)


def group_names(model: nn.Module) -> list[list[str]]:
    return [
        [layer.name.rsplit(".", 1)[1] for layer in group.members] for group in model.base_model.routing.groups.groups
    ]


def test_a_grouped_step_equals_the_first_one_which_was_not(model: nn.Module, device: str) -> None:
    ids = tokens(device)
    with use_path("triton"):
        first = step(model, ids)
        assert group_names(model) == []
        second = step(model, ids)
    assert group_names(model) == [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]] * 2
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_grouped_and_torch_paths_train_alike(model: nn.Module, device: str) -> None:
    twin = copy.deepcopy(model)
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    losses: dict[str, list[float]] = {}
    for path, trained in (("torch", model), ("triton", twin)):
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=3e-3)
        torch.manual_seed(1)
        with use_path(path):
            for _ in range(4):
                ids = tokens(device)
                loss = trained(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.setdefault(path, []).append(loss.item())
    assert losses["triton"] == pytest.approx(losses["torch"], abs=1e-4)
    trained = dict(model.named_parameters())
    assert all((trained[name] - value).abs().max() > 1e-3 for name, value in start.items())  # it is a training


def test_usage_is_counted_once_for_each_member(model: nn.Module, device: str) -> None:
    ids = tokens(device)
    with use_path("triton"):
        step(model, ids)
        model.reset_expert_usage()
        step(model, ids)
    rows = model.expert_usage()
    assert len(rows) == 14
    assert {row.tokens for row in rows} == {ids.numel()}


def test_checkpointing_recomputes_a_group(model: nn.Module, device: str) -> None:
    ids = tokens(device)
    with use_path("triton"):
        step(model, ids)
        plain = step(model, ids)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.config.use_cache = False
        again = step(model, ids)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7, msg=name)


class TwoReaders(nn.Module):
    """The second layer reads the first one's input in one mode, and something else in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 8), nn.Linear(16, 8)
        self.same = True

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x if self.same else 2 * x)


def test_a_group_whose_outputs_are_not_fetched_is_dissolved_and_harms_nothing(device: str) -> None:
    model = get_peft_model(
        TwoReaders().to(device), GoatConfig(r=4, num_experts=2, target_modules=["one", "two"])
    ).train()
    x = torch.randn(6, 16, device=device)
    inner = model.base_model.model
    with use_path("triton"):
        for _ in range(2):
            model(x)
        assert group_names_of(model) == [["one", "two"]]
        inner.same = False
        found = [model(x).detach() for _ in range(2)]
    assert group_names_of(model) == []
    with use_path("torch"):
        wanted = model(x)
    for output in found:
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)


def group_names_of(model: nn.Module) -> list[list[str]]:
    return [[layer.name for layer in group.members] for group in model.base_model.routing.groups.groups]


def test_a_disabled_adapter_gives_the_base_also_in_a_group(model: nn.Module, device: str) -> None:
    ids = tokens(device)
    with use_path("triton"):
        step(model, ids)
        step(model, ids)
        with model.disable_adapter(), torch.no_grad():
            disabled = model(input_ids=ids).logits
        unloaded = model.unload()
        with torch.no_grad():
            assert torch.equal(disabled, unloaded(input_ids=ids).logits)


def test_few_tokens_keep_what_a_backward_needs(model: nn.Module, device: str) -> None:
    """Up to 16 tokens are a decoding step, unless gradients are wanted."""
    ids = torch.randint(1, 100, (1, 7), device=device)
    gradients = []
    for path in ("torch", "triton"):
        model.eval().zero_grad()
        with use_path(path):
            model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for slow, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_checkpointing_from_the_first_step_with_two_forwards_before_the_backward(model: nn.Module, device: str) -> None:
    ids = tokens(device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    with use_path("triton"):
        first = model(input_ids=ids, labels=ids).loss
        second = model(input_ids=ids, labels=ids).loss
        (first + second).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_changed_input_is_not_answered_from_the_group(device: str) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 8), nn.Linear(16, 8)
            self.change = False

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            first = self.one(x)
            if self.change:
                x.add_(1)
            return first + self.two(x)

    model = get_peft_model(InPlace().to(device), GoatConfig(r=4, num_experts=2, target_modules=["one", "two"])).eval()
    x = torch.randn(6, 16, device=device)
    with torch.no_grad():
        with use_path("triton"):
            for _ in range(2):
                model(x)
            model.base_model.model.change = True
            found = model(x)
        with use_path("torch"):
            wanted = model(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
