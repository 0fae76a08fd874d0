"""A tiny base, and ways to load an adapter onto it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.arange(24).reshape(2, 12)


def fresh_base(seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of one layer of width 16; the same for the same seed."""
    return copy.deepcopy(_base(seed))


@functools.cache
def _base(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What a model says to fixed tokens."""
    return model.eval()(IDS).logits


def load(folder: Path, **settings: object) -> PeftModel:
    """Load as users do, without `goat`."""
    return PeftModel.from_pretrained(fresh_base(), folder, **settings)
