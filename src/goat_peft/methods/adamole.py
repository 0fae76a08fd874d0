"""AdaMoLE: a learned threshold in place of k."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Method, register
from .mixtures import MixtureOptions, build


class AdamoleOptions(MixtureOptions):
    """The preset `adamole`, and any key over it."""

    starting_preset: ClassVar[str] = "adamole"

    name: Literal["adamole"] = "adamole"


register(
    Method(
        name="adamole",
        description="LoRA experts above a learned threshold, as many as a token needs",
        source="Liu and Luo, COLM 2024, arXiv 2405.00361",
        options=AdamoleOptions,
        build=build,
        learning_rate=1e-4,
    )
)
