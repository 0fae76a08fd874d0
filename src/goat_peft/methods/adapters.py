"""What the single-adapter methods share: PEFT's `LoraConfig` with a few of its fields fixed by the method."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import LoraConfig, TaskType, get_peft_model
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from ..recipes.schema import MethodOptions
from .base import check_targets, modules_to_save


class AdapterOptions(MethodOptions):
    """PEFT's `LoraConfig`, as far as recipes need it; `fixed` holds what makes the method."""

    fixed: ClassVar[dict[str, Any]] = {}

    r: PositiveInt = Field(8, description="rank")
    lora_alpha: PositiveFloat = Field(16, description="the update is scaled by lora_alpha / r")
    lora_dropout: NonNegativeFloat = Field(0.0, lt=1)
    target_modules: str | list[str] = Field("all-linear", description="module names, a pattern, or all-linear")
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None


def build(model: nn.Module, options: AdapterOptions, task_type: TaskType | None) -> nn.Module:
    """Wrap the model with a LoRA adapter of the method's kind."""
    check_targets(model, options.target_modules)
    settings = options.fixed | options.model_dump(exclude={"name"})
    settings["modules_to_save"] = modules_to_save(model, options.modules_to_save, task_type)
    return get_peft_model(model, LoraConfig(task_type=task_type, **settings))
