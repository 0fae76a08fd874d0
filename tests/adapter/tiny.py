"""Tiny random models and batches for the adapter's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from goat_peft import GoatConfig

VOCABULARY = 64


class MLP(nn.Module):
    """Two linears and no transformers; takes X as PEFT's own tests do."""

    def __init__(self, width: int = 16, bias: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, width, bias=bias)
        self.lin1 = nn.Linear(width, 12, bias=bias)

    def forward(self, X: Tensor) -> Tensor:
        return self.lin1(torch.relu(self.lin0(X.to(self.lin0.weight.dtype))))


def _decoder(config_cls: type, model_cls: type, **overrides: Any) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return model_cls(config_cls(**(settings | overrides)))


def tiny_llama(**overrides: Any) -> PreTrainedModel:
    return _decoder(LlamaConfig, LlamaForCausalLM, **overrides)


def tiny_qwen2(**overrides: Any) -> PreTrainedModel:
    return _decoder(Qwen2Config, Qwen2ForCausalLM, **overrides)


def tiny_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def tiny_bert(num_labels: int = 3) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, num_labels=num_labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def tiny_clip_vision() -> PreTrainedModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
    )


def tiny_t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


def seeded(make: Callable[..., nn.Module], seed: int = 0, **kwargs: Any) -> nn.Module:
    """A model whose random weights are those of `seed`, so that two calls give the same base."""
    torch.manual_seed(seed)
    return make(**kwargs)


def settings(**overrides: Any) -> GoatConfig:
    """A small GOAT: 4 experts of rank 2, two of them active."""
    return GoatConfig(**({"r": 8, "num_experts": 4, "top_k": 2} | overrides))


def adapted(make: Callable[..., nn.Module] = tiny_llama, seed: int = 0, **overrides: Any) -> PeftModel:
    """A seeded base with a seeded adapter on it."""
    model = seeded(make, seed)
    torch.manual_seed(seed + 1)
    return get_peft_model(model, settings(**overrides))


def token_batch(rows: int = 3, length: int = 9, seed: int = 3) -> dict[str, Tensor]:
    """Random tokens with labels, no padding."""
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def padded_batch(rows: int = 3, length: int = 9, seed: int = 3, side: str = "right") -> dict[str, Tensor]:
    """`token_batch` with row i short by 2 i tokens."""
    batch = token_batch(rows, length, seed)
    for i in range(rows):
        gap = slice(0, 2 * i) if side == "left" else slice(length - 2 * i, length)
        batch["input_ids"][i, gap] = 0
        batch["attention_mask"][i, gap] = 0
        batch["labels"][i, gap] = -100
    return batch


def train(model: nn.Module, batch: dict[str, Tensor], steps: int = 20, lr: float = 1e-2) -> list[float]:
    """AdamW steps on one batch; returns the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def gradients(model: nn.Module, part: str = "goat_") -> dict[str, Tensor]:
    """Gradients of the parameters whose name holds `part`, by name; there must be some."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if part in name and p.grad is not None}
    assert found
    return found


def adapter_tensors(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Parameters and buffers of one adapter, by name."""
    return {
        name: t.clone() for name, t in model.state_dict().items() if ".goat_" in name and name.endswith("." + adapter)
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    """Same names, same tensors; bit for bit unless a tolerance is given."""
    assert found.keys() == expected.keys() and found
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda m, name=name: f"{name}: {m}"
        )
