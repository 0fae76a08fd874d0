"""Figures of runs as rows of text, with intervals."""

from __future__ import annotations

from typing import Any


def final_row(result: dict[str, Any]) -> dict[str, Any]:
    """The last row of a result's metrics: its final figures."""
    return result["train_info"]["metrics"][-1]


def interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share: how far a figure from `total` examples may be off by their choice."""
    from scipy.stats import binomtest  # half a second that other figures need not wait for

    found = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def percent(share: float) -> str:
    """A share in per cent, one decimal."""
    return f"{100 * share:.1f}"


def count(number: int) -> str:
    """A parameter count such as 22.7 M or 331 k."""
    if number >= 1_000_000:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e3:.0f} k" if number >= 1000 else str(number)


def short_layer(name: str) -> str:
    """Leave out the parts of a layer's name that every layer shares."""
    drop = {"base_model", "model", "bert", "roberta", "encoder", "layer", "layers", "self", "transformer"}
    return ".".join(part for part in name.split(".") if part not in drop)


def code(text: str) -> str:
    """A text as Markdown code on one line; a backtick, which would end it, reads as an apostrophe."""
    inner = " ".join(text.replace("`", "'").split())
    return f"`{inner or ' '}`"
