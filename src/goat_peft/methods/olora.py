"""OLoRA, as PEFT has it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .adapters import AdapterOptions, build
from .base import Method, register


class OloraOptions(AdapterOptions):
    """LoRA's settings with the method's own fixed."""

    fixed: ClassVar[dict[str, Any]] = {"init_lora_weights": "olora"}

    name: Literal["olora"] = "olora"


register(
    Method(
        name="olora",
        description="LoRA started from the weight's QR factors (PEFT)",
        source="Buyukakyuz, 2024, arXiv 2406.01775",
        options=OloraOptions,
        build=build,
        learning_rate=2e-4,
        writes_base=True,
    )
)
