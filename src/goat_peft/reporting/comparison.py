"""Pictures of a comparison, each from `comparison.json` and the result files it names.

Methods differ by colour, marker and line style together, so that none has to be told by colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import records
from .pictures import heat_map, series
from .style import COLOURS, save

MARKERS = "osD^vP*Xhd<>p"
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file, a heading, what it shows in words for those who cannot see it, and what to know when reading it."""

    path: Path
    heading: str
    alt: str
    note: str


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the method at a place in the plan."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
    }


def accuracy(task: dict[str, Any], baseline: str, path: Path) -> Picture:
    """Mean of the metric with a dot for each seed, best on top; beside it the difference to the baseline with its interval."""
    rows = _ranked(task)
    figure = Figure(figsize=(11, 0.38 * len(rows) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = {row["label"]: look(i) for i, row in enumerate(task["rows"])}
    for y, row in enumerate(reversed(rows)):
        colour = places[row["label"]]["color"]
        left.plot(
            [100 * t["value"] for t in row["test"]], [y] * len(row["test"]), "o", color=colour, alpha=0.45, markersize=6
        )
        left.plot(100 * row["mean"], y, "|", color="black", markersize=14, markeredgewidth=2)
        if row["low"] is not None:
            right.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=3)
        if row["difference"] is not None:
            right.plot(100 * row["difference"], y, marker="|", color="black", markersize=14, markeredgewidth=2)
    left.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    left.set(xlabel=f"{task['split']} {task['metric']} in % (dots: seeds, bar: mean)")
    right.axvline(0, color="black", linewidth=1, linestyle="--")
    right.set(xlabel=f"less {baseline}, in points (95 % paired bootstrap)")
    save(figure, path)
    said = ", ".join(f"{row['label']} {100 * row['mean']:.1f}" for row in rows)
    return Picture(
        path,
        f"{task['split'].capitalize()} {task['metric']}, {task['name']}",
        f"Means in per cent: {said}.",
        "An interval that crosses the dashed line does not rank the two.",
    )


def learning_rates(task: dict[str, Any], path: Path) -> Picture:
    """Validation metric over the learning rates tried, per method; a ring marks the choice."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    said = []
    for index, row in enumerate(task["rows"]):
        tried: dict[float, list[float]] = {}
        for trial in row["sweep"]:
            if trial["value"] is not None:
                tried.setdefault(trial["learning_rate"], []).append(100 * trial["value"])
        means = {rate: sum(values) / len(values) for rate, values in sorted(tried.items())}
        axes.plot(list(means), list(means.values()), label=row["label"], **look(index))
        chosen = row["learning_rate"]
        if chosen in means:
            axes.plot(chosen, means[chosen], "o", markersize=15, markerfacecolor="none", markeredgecolor="black")
            said.append(f"{row['label']} {chosen:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"validation {task['metric']} in %")
    axes.legend(frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)
    return Picture(
        path,
        f"Learning rates, {task['name']}",
        f"Chosen learning rates: {', '.join(said)}.",
        "Scored on the validation split; a ring marks the choice. A choice at the end of its grid may have a better one beyond.",
    )


def cost(task: dict[str, Any], path: Path) -> Picture:
    """Test metric against trained parameters and against training time."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = [(index, row) for index, row in enumerate(task["rows"]) if row["mean"] is not None]
    for index, row in rows:
        style = look(index) | {"linestyle": "none", "markersize": 9}
        left.plot(row["parameters"], 100 * row["mean"], label=row["label"], **style)
        right.plot(row["train_time"], 100 * row["mean"], **style)
    left.set(xscale="log", xlabel="trained parameters", ylabel=f"{task['split']} {task['metric']} in %")
    right.set(xlabel="training time in seconds, mean over seeds")
    figure.legend(frameon=False, loc="outside right center")
    save(figure, path)
    said = ", ".join(f"{row['label']} {row['parameters']:,} parameters {row['train_time']:.0f} s" for _, row in rows)
    return Picture(
        path,
        f"Cost, {task['name']}",
        f"{said}.",
        "Times are those of the machines that ran, with whatever else they were doing; parameters include the task's head.",
    )


def curves(task: dict[str, Any], folder: Path, path: Path) -> Picture | None:
    """Training loss over steps of each method's first final run; None where no run was long enough to log one."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    said = []
    for index, row in enumerate(task["rows"]):
        run = _folder(row, folder)
        if run is None:
            continue
        steps, losses = series(records.read_json(run / records.RESULT)["train_info"]["metrics"], "train loss")
        axes.plot(steps, losses, label=row["label"], markevery=max(1, len(steps) // 8), markersize=5, **look(index))
        if losses:
            said.append(f"{row['label']} {losses[-1]:.3f}")
    if not said:
        return None
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)
    return Picture(
        path,
        f"Training curves, {task['name']}",
        f"Last training losses: {', '.join(said)}.",
        "First seed, at the chosen learning rate; runs known from files have no curve.",
    )


def experts(task: dict[str, Any], folder: Path, path: Path) -> Picture | None:
    """Share of test tokens per layer and expert, one heat map per mixture; None if no method routes."""
    found = []
    for row in task["rows"]:
        run = _folder(row, folder)
        file = run / records.EXPERT_USAGE if run is not None else None
        usage = records.read_json(file).get(task["split"]) if file is not None and file.is_file() else None
        if usage and len(usage[0]["share"]) > 1:
            found.append((row["label"], usage))
    if not found:
        return None
    height = max(3.0, 0.13 * max(len(usage) for _, usage in found) + 1.2)
    figure = Figure(figsize=(4.6 * len(found), height), layout="constrained")
    for axes, (label, usage) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        heat_map(axes, usage, label)
    save(figure, path)
    said = ", ".join(
        f"{label} from {min(min(r['share']) for r in u):.2f} to {max(max(r['share']) for r in u):.2f}"
        for label, u in found
    )
    return Picture(
        path,
        f"Expert usage, {task['name']}",
        f"Range of an expert's share of the routed test tokens: {said}.",
        "First seed; a row is a layer.",
    )


def _folder(row: dict[str, Any], folder: Path) -> Path | None:
    """Where a method's first final run lies that was made here; None where it has no figure, or all were known from files."""
    runs = [trial["run"] for trial in row["test"] if trial["run"] is not None] if row["mean"] is not None else []
    return folder / runs[0] if runs else None


def _ranked(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with a result, the best first."""
    return sorted((row for row in task["rows"] if row["mean"] is not None), key=lambda row: row["rank"])
