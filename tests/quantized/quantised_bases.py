"""Tiny language models on quantised bases, and the bits that such a base is stored in."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from goat_peft.adapter.quantized import keep_trainable
from goat_peft.bench.quantised import quantise

LIBRARIES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed"))
    for kind, library in LIBRARIES.items()
]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny(kind: str, seed: int = 0, layers: int = 1) -> PreTrainedModel:
    """A random Llama of width 64 whose linears are quantised; the same for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    base = quantise(LlamaForCausalLM(config), kind)
    keep_trainable(base)
    return base


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every tensor that the quantised linears of a model consist of, by name."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight
        if type(weight).__module__.startswith("torchao"):
            found |= {f"{name}.{part}": getattr(weight, part) for part in weight.tensor_data_names}
            continue
        found[name] = weight.data
        state = getattr(weight, "quant_state", None)
        if state is not None:
            found |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        scales = getattr(getattr(module, "state", None), "SCB", None)
        scales = getattr(weight, "SCB", None) if scales is None else scales
        if scales is not None:
            found[f"{name}.SCB"] = scales
    return {
        name.replace("base_layer", "").replace("..", "."): tensor.detach().clone() for name, tensor in found.items()
    }
