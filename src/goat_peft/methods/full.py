"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from typing import Literal

from peft import TaskType
from torch import nn

from ..recipes.schema import MethodOptions
from .base import FULL_RATES, Method, register, train_whole


class FullOptions(MethodOptions):
    """Full fine-tuning has no settings of its own."""

    name: Literal["full"] = "full"


def build(model: nn.Module, options: FullOptions, task_type: TaskType | None) -> nn.Module:
    """Return the model with every parameter trainable and in float32; bfloat16 compute is `training.bf16`."""
    return train_whole(model)


register(
    Method(
        name="full",
        description="full fine-tuning: every parameter of the model trains",
        source="as for LoRA's baseline, arXiv 2106.09685",
        options=FullOptions,
        build=build,
        learning_rate=2e-5,
        learning_rates=FULL_RATES,
        saves_adapter=False,
        writes_base=True,
    )
)
