"""Trainable parameters against the published ones (METHOD section 5), on the meta device."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from goat_peft import GoatConfig


def roberta_large() -> nn.Module:
    return RobertaModel(
        RobertaConfig(
            vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            max_position_embeddings=514, type_vocab_size=1,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def clip_vit_b32() -> nn.Module:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            image_size=224,
            patch_size=32,
        )
    )


def llama2_7b() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def trained(make, preset: str, **overrides: object) -> tuple[int, int]:
    """(trainable, base) parameters of an adapted model that has no memory."""
    with torch.device("meta"):
        base = make()
    size = sum(p.numel() for p in base.parameters())
    model = get_peft_model(base, GoatConfig.from_preset(preset, **overrides), low_cpu_mem_usage=True)
    assert isinstance(model, PeftModel)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), size


@pytest.mark.parametrize(
    ("make", "settings", "millions"),
    [
        (roberta_large, {"r": 32}, 15.93),
        (clip_vit_b32, {"r": 8}, 1.99),
        (llama2_7b, {"r": 8}, 29.10),
        (llama2_7b, {"r": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]}, 63.11),
    ],
)
@pytest.mark.parametrize("preset", ["paper", "molora"])
def test_mixtures_have_the_published_size(make, settings: dict, millions: float, preset: str) -> None:
    found, _ = trained(make, preset, **settings)
    assert found / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("preset", "share"), [("molora", 4.50), ("hydralora", 2.75)])
def test_shares_of_roberta_large(preset: str, share: float) -> None:
    found, base = trained(roberta_large, preset, r=32)
    assert 100 * found / base == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("preset", "share"), [("molora", 2.24), ("hydralora", 1.58), ("adamole", 2.33)])
def test_shares_of_clip_vit_b32(preset: str, share: float) -> None:
    found, base = trained(clip_vit_b32, preset, r=8)
    assert 100 * found / base == pytest.approx(share, abs=0.06)
