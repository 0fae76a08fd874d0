"""PiSSA, as PEFT has it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .adapters import AdapterOptions, build
from .base import Method, register


class PissaOptions(AdapterOptions):
    """LoRA's settings with the method's own fixed."""

    fixed: ClassVar[dict[str, Any]] = {"init_lora_weights": "pissa"}

    name: Literal["pissa"] = "pissa"


register(
    Method(
        name="pissa",
        description="LoRA started from the largest singular triplets, which leave the frozen weight (PEFT)",
        source="Meng et al., NeurIPS 2024, arXiv 2404.02948",
        options=PissaOptions,
        build=build,
        learning_rate=2e-4,
        writes_base=True,
    )
)
