"""DoRA, as PEFT has it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .adapters import AdapterOptions, build
from .base import Method, register


class DoraOptions(AdapterOptions):
    """LoRA's settings with the method's own fixed."""

    fixed: ClassVar[dict[str, Any]] = {"use_dora": True}

    name: Literal["dora"] = "dora"


register(
    Method(
        name="dora",
        description="LoRA on the weight's direction, with a trained magnitude (PEFT)",
        source="Liu et al., ICML 2024, arXiv 2402.09353",
        options=DoraOptions,
        build=build,
        learning_rate=2e-4,
    )
)
