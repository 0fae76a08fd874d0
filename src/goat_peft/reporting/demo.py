"""The demo's picture: accuracies, training curves, and where GOAT's tokens went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .pictures import heat_map, series
from .style import COLOURS, save


def picture(
    rows: list[dict[str, Any]],
    results: list[dict[str, Any]],
    usage: list[dict[str, Any]],
    majority: float,
    path: Path,
) -> None:
    """Draw the three panels; `rows` are the lines of the demo's table, `results` their result files, in one order.

    `usage` holds GOAT's expert usage, `majority` the accuracy of always saying the most frequent label.
    """
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.2))
    _bars(left, rows, majority)
    for row, result, colour in zip(rows, results, COLOURS, strict=False):
        middle.plot(*series(result["train_info"]["metrics"], "train loss"), color=colour, label=row["method"])
    middle.set(xlabel="step", ylabel="training loss", title="training")
    middle.legend(frameon=False)
    heat_map(right, usage, "GOAT: where the test tokens went")
    save(figure, path)


def _bars(axes: Axes, rows: list[dict[str, Any]], majority: float) -> None:
    """Bars of trained accuracy with their 95 % intervals; lines mark the untrained model and the majority label."""
    for position, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
        value = 100 * row["trained"]
        spread = [[value - 100 * row["low"]], [100 * row["high"] - value]]
        axes.bar(position, value, yerr=spread, color=colour, capsize=5, ecolor="black")
        axes.text(position, 3, f"{value:.1f}", ha="center", color="white", fontweight="bold")
    untrained = 100 * rows[0]["untrained"]
    axes.axhline(untrained, color="black", linestyle="--", linewidth=1, label=f"untrained: {untrained:.1f}")
    axes.axhline(
        100 * majority, color="black", linestyle=":", linewidth=1, label=f"most frequent label: {100 * majority:.1f}"
    )
    axes.set_xticks(range(len(rows)), [row["method"] for row in rows])
    axes.set(ylabel="test accuracy in % (95 % interval)", ylim=(0, 100), title="test accuracy")
    axes.legend(frameon=False, loc="upper right")
