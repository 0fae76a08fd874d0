"""A plain PEFT LoRA with given factors in each layer of a GOAT adapter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from ..adapter import GoatConfig, GoatLayer
from ..errors import UserError

BIAS = {"goat_only": "lora_only"}


def twin_of(base: nn.Module) -> nn.Module:
    """A second base of the same parameters, not copies of them: another adapter can be put on it."""
    return copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})


def adapted_layers(model: nn.Module) -> dict[str, GoatLayer]:
    """The adapted linears by module name, in the model's order."""
    return {module.name: module for module in model.modules() if isinstance(module, GoatLayer)}


@torch.no_grad()
def build_lora(routed: PeftModel, twin: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], rank: int) -> PeftModel:
    """Put a LoRA of rank `rank` and scale 1 on `twin`: `B A` in the layers of `routed`, whose `modules_to_save` and biases it takes over.

    Args:
        factors: module name -> A (rank, n), B (m, rank).
    """
    config: Any = routed.peft_config["default"]
    lora = get_peft_model(twin, lora_config(config, rank))
    lora.peft_config["default"].base_model_name_or_path = config.base_model_name_or_path
    inner = lora.get_base_model()
    layers: dict[str, Any] = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    if layers.keys() != factors.keys():
        missed = sorted(layers.keys() ^ factors.keys())
        raise UserError(
            f"target_modules={config.target_modules}: LoRA takes it for other layers than the adapter has ({missed[0]}); "
            "train with a list of module names"
        )
    for name, (A, B) in factors.items():
        layers[name].lora_A["default"].weight.copy_(A)
        layers[name].lora_B["default"].weight.copy_(B)
    saved = dict(_saved_modules(routed))
    for name, module in _saved_modules(lora):
        module.load_state_dict(saved[name].state_dict())
    return lora.eval()


def lora_config(config: GoatConfig, rank: int) -> LoraConfig:
    """LoRA's settings for the layers and whole modules of a GOAT adapter."""
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=copy.copy(config.target_modules),  # type: ignore[arg-type]  # LoraConfig takes sets too
        exclude_modules=copy.copy(config.exclude_modules),  # type: ignore[arg-type]
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=None if config.modules_to_save is None else list(config.modules_to_save),
        bias=BIAS.get(config.bias, config.bias),  # type: ignore[arg-type]
        fan_in_fan_out=config.fan_in_fan_out,
    )


def _saved_modules(model: PeftModel) -> list[tuple[str, nn.Module]]:
    """The modules trained in full, by their name in the base."""
    named = model.get_base_model().named_modules()
    return [
        (name, module.modules_to_save["default"]) for name, module in named if isinstance(module, ModulesToSaveWrapper)
    ]
