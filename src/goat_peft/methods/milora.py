"""MiLoRA: one expert on the minor segment."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Method, register
from .mixtures import MixtureOptions, build


class MiloraOptions(MixtureOptions):
    """The preset `milora`, and any key over it."""

    starting_preset: ClassVar[str] = "milora"

    name: Literal["milora"] = "milora"


register(
    Method(
        name="milora",
        description="one LoRA started from the smallest singular triplets, which leave the frozen weight",
        source="Wang et al., NAACL 2025, arXiv 2406.09044",
        options=MiloraOptions,
        build=build,
        learning_rate=1e-4,
    )
)
