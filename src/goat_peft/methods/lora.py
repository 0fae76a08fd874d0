"""LoRA, as PEFT has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .adapters import AdapterOptions, build
from .base import Method, register


class LoraOptions(AdapterOptions):
    """LoRA's own settings."""

    name: Literal["lora"] = "lora"
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r)")


register(
    Method(
        name="lora",
        description="one low-rank update per linear layer (PEFT's LoRA)",
        source="Hu et al., ICLR 2022, arXiv 2106.09685",
        options=LoraOptions,
        build=build,
        learning_rate=2e-4,
    )
)
