"""GOAT: routed experts started from segments of the weight's SVD."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Method, register
from .mixtures import MixtureOptions, build


class GoatOptions(MixtureOptions):
    """GOAT, and every ablation of it."""

    name: Literal["goat"] = "goat"
    preset: Literal["paper", "released", "soft", "soft-zero"] | None = Field(
        None, description="named settings that the other keys override"
    )


register(
    Method(
        name="goat",
        description="routed experts started from segments of the weight's SVD, with aligned scaling",
        source="Fan et al., ICML 2025, arXiv 2502.16894",
        options=GoatOptions,
        build=build,
        learning_rate=1e-4,
    )
)
