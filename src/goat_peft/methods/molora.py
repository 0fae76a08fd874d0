"""MoLoRA: a plain mixture of LoRA experts."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Method, register
from .mixtures import MixtureOptions, build


class MoloraOptions(MixtureOptions):
    """The preset `molora`, and any key over it."""

    starting_preset: ClassVar[str] = "molora"

    name: Literal["molora"] = "molora"


register(
    Method(
        name="molora",
        description="top-2 of 8 LoRA experts, zero B, scale alpha / d",
        source="Zadouri et al., ICLR 2024, arXiv 2309.05444",
        options=MoloraOptions,
        build=build,
        learning_rate=1e-4,
    )
)
