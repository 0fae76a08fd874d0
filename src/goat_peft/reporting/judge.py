"""A judge's scores per category as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .style import COLOURS, save


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw one bar per category with its standard error, and the overall score as a line, from a `judge.json`."""
    figures = result["judge_info"]
    rows = [(name, row) for name, row in figures["categories"].items() if row["score"] is not None]
    figure = Figure(figsize=(7, 0.4 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, (_, row) in enumerate(reversed(rows)):
        axes.barh(place, row["score"], color=COLOURS[0], xerr=row["standard_error"], capsize=3, ecolor="black")
        axes.text(0.15, place, f"{row['score']:.2f}", va="center", color="white", fontweight="bold")
    axes.set_yticks(range(len(rows)), [f"{name} ({row['questions']})" for name, row in reversed(rows)])
    if figures["score"] is not None:
        axes.axvline(figures["score"], color=COLOURS[1], linestyle="--", label=f"all: {figures['score']:.2f}")
        axes.legend(frameon=False, loc="lower right")
    info = result["run_info"]
    axes.set(xlim=(0, 10), xlabel="score, 1 to 10 (line: standard error over questions)")
    axes.set_title(f"{info['model']}, judged by {info['judge']}", loc="left", wrap=True)
    save(figure, path)
