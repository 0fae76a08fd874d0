"""Pictures of one run: its training curve and its experts' load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLOURS, HEAT, save
from .tables import short_layer


def curve(result: dict[str, Any], path: Path) -> None:
    """Draw training loss (left axis) and validation figure (right axis) over the steps of one run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = result["train_info"]["metrics"]
    steps, losses = series(rows, "train loss")
    axes.plot(steps, losses, color=COLOURS[0], label="training loss")
    axes.set(xlabel="step", ylabel="training loss", title=result["run_info"]["experiment_name"])
    name = next(
        (key for key in ("valid accuracy", "valid mean_token_accuracy", "valid loss") if series(rows, key)[0]), None
    )
    handles = axes.get_lines()
    if name is not None:
        right = axes.twinx()
        right.plot(*series(rows, name), color=COLOURS[1], marker="o", label=name.replace("_", " "))
        right.set_ylabel(name.replace("valid", "validation").replace("_", " "))
        handles = [*handles, *right.get_lines()]
    axes.legend(handles=handles, loc="best", frameon=False)
    save(figure, path)


def experts(usage: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the heat map of token shares, layers down and experts across."""
    figure = Figure(figsize=(7, max(2.5, 0.17 * len(usage) + 1.4)), layout="constrained")
    heat_map(figure.subplots(), usage, title)
    save(figure, path)


def heat_map(axes: Axes, usage: list[dict[str, Any]], title: str) -> None:
    """Draw one row per layer and one column per expert; a colour bar gives the share of routed tokens."""
    shares = [row["share"] for row in usage]
    image = axes.imshow(shares, aspect="auto", cmap=HEAT, vmin=0.0)
    every = max(1, len(usage) // 40)
    axes.set_yticks(range(0, len(usage), every), [short_layer(row["layer"]) for row in usage[::every]], fontsize=6)
    axes.set_xticks(range(len(shares[0])), [str(i + 1) for i in range(len(shares[0]))])
    axes.set(xlabel="expert", title=title)
    axes.figure.colorbar(image, ax=axes, label=f"share of routed tokens (even: {1 / len(shares[0]):.3f})")


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have `key`; the closing row, which repeats the last loss, is left out."""
    points = {row["step"]: row[key] for row in rows[:-1] if row.get(key) is not None}
    return list(points), list(points.values())
