"""Models of real shapes with random weights, and the methods measured on them."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from goat_peft import GoatConfig
from goat_peft.errors import closest

from .loop import add_loop_experts

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT_LINEARS = ("query", "key", "value", "dense")

SHAPES = {
    "llama-2-7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000
    ),
    "llama-3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=30,
        vocab_size=49152,
    ),
    "minilm-l6": BertConfig(
        hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6, vocab_size=30522
    ),
}
METHODS = ("floor", "lora", "loop", "goat", "goat-soft")


def build_base(shape: str, layers: int, dtype: torch.dtype, device: str) -> nn.Module:
    """A frozen model of a named shape with random weights."""
    config = SHAPES[shape]
    config.num_hidden_layers = layers
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = (
                BertForSequenceClassification(config) if isinstance(config, BertConfig) else LlamaForCausalLM(config)  # type: ignore[arg-type]
            )
    finally:
        torch.set_default_dtype(before)
    model.config.use_cache = False
    return model.requires_grad_(False)


def linear_names(base: nn.Module) -> tuple[str, ...]:
    """Last names of the linears that get adapters."""
    return BERT_LINEARS if isinstance(base, BertForSequenceClassification) else LLAMA_LINEARS


def apply_method(method: str, base: nn.Module, r: int, num_experts: int, top_k: int, dropout: float) -> nn.Module:
    """The base with a method's adapters on all its linears; 'floor' has none, and a gradient goes back to its embeddings' output; 'goat-soft' is the preset.

    GOAT starts from random factors with a residual of the same shape: the time does not depend on the values.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: not known; {closest(method, METHODS)}")
    names = linear_names(base)
    if method == "floor":
        embeddings = base.get_input_embeddings()  # type: ignore[operator]
        embeddings.shift = nn.Parameter(torch.zeros(1, device=embeddings.weight.device, dtype=embeddings.weight.dtype))
        embeddings.register_forward_hook(lambda module, args, output: output + module.shift)
        return base
    if method == "loop":
        return add_loop_experts(base, names, r, num_experts, top_k)
    targets = list(names)
    if method == "lora":
        return get_peft_model(
            base,
            LoraConfig(
                r=r,
                lora_alpha=2 * r,
                lora_dropout=dropout,
                target_modules=targets,
                exclude_modules=["classifier", "pooler.dense"],
            ),
        )
    settings: dict[str, Any] = {
        "r": r,
        "num_experts": num_experts,
        "lora_dropout": dropout,
        "target_modules": targets,
        "exclude_modules": ["classifier", "pooler.dense"],
    }
    config = GoatConfig(top_k=top_k, **settings) if method == "goat" else GoatConfig.from_preset("soft", **settings)
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    return _fill_experts(model)


def _fill_experts(model: nn.Module) -> nn.Module:
    from goat_peft.adapter import GoatLayer

    for layer in model.modules():
        if isinstance(layer, GoatLayer):
            device: Any = layer.get_base_layer().weight.device
            for name in layer.adapter_layer_names:
                tensors = getattr(layer, name)
                if "default" not in tensors:
                    continue
                like = tensors["default"]
                tensors["default"] = nn.Parameter(torch.randn(like.shape, device=device) * 0.01)
            for buffers in (layer.goat_residual_A, layer.goat_residual_B):
                buffers["default"] = torch.randn(buffers["default"].shape, device=device) * 0.01
            layer.goat_scale["default"] = torch.full_like(layer.goat_scale["default"], 2.0, device=device)
            layer.goat_base_sample["default"] = layer.goat_base_sample["default"].to(device)
            layer.pending.clear()
    return model
