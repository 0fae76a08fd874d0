"""GOAT with the settings of the authors' released code."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Method, register
from .mixtures import MixtureOptions, build


class ReleasedOptions(MixtureOptions):
    """The preset `released`, and any key over it."""

    starting_preset: ClassVar[str] = "released"

    name: Literal["goat-released"] = "goat-released"


register(
    Method(
        name="goat-released",
        description="GOAT as its authors' code runs it: scale alpha / d in place of the theorem's",
        source="Fan et al., ICML 2025, arXiv 2502.16894, released code",
        options=ReleasedOptions,
        build=build,
        learning_rate=1e-4,
    )
)
