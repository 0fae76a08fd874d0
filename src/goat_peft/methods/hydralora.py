"""HydraLoRA: experts that share their A."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Method, register
from .mixtures import MixtureOptions, build


class HydraloraOptions(MixtureOptions):
    """The preset `hydralora`, and any key over it."""

    starting_preset: ClassVar[str] = "hydralora"

    name: Literal["hydralora"] = "hydralora"


register(
    Method(
        name="hydralora",
        description="one A shared by all experts, a B each, softmax over all of them",
        source="Tian et al., NeurIPS 2024, arXiv 2404.19245",
        options=HydraloraOptions,
        build=build,
        learning_rate=1e-4,
    )
)
