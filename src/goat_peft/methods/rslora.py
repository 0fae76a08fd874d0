"""rsLoRA, as PEFT has it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .adapters import AdapterOptions, build
from .base import Method, register


class RsloraOptions(AdapterOptions):
    """LoRA's settings with the method's own fixed."""

    fixed: ClassVar[dict[str, Any]] = {"use_rslora": True}

    name: Literal["rslora"] = "rslora"


register(
    Method(
        name="rslora",
        description="LoRA scaled by alpha / sqrt(r) (PEFT)",
        source="Kalajdzievski, 2023, arXiv 2312.03732",
        options=RsloraOptions,
        build=build,
        learning_rate=2e-4,
    )
)
