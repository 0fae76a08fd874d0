"""The picture of several comparisons over the same tasks with the same options: each method's average, and its difference to the baseline."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from .comparison import look
from .evidence import gap_text
from .style import save
from .summary import Summary


def groups(summaries: list[Summary]) -> list[list[Summary]]:
    """Comparisons whose averages mean the same: the same tasks, metrics, split, baseline, and options common to all methods, such as the rank."""
    found: dict[tuple[object, ...], list[Summary]] = {}
    for summary in summaries:
        tasks = tuple((task["name"], task["metric"], task["split"]) for task in summary.tasks)
        common = json.dumps(summary.plan["common"], sort_keys=True)
        found.setdefault((tasks, summary.baseline, common), []).append(summary)
    return list(found.values())


def draw(group: list[Summary], path: Path) -> None:
    """Averages on the left, differences with their 95 % intervals on the right; a colour and a marker for each comparison."""
    labels = list(dict.fromkeys(label for summary in group for label in summary.labels))
    figure = Figure(figsize=(12, (0.15 * len(group) + 0.2) * len(labels) + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, summary in enumerate(group):
        style = look(index) | {"linestyle": "none", "markersize": 6}
        shift = 0.7 * ((index + 0.5) / len(group) - 0.5)
        for y, label in enumerate(labels):
            row = summary.overall.get(label)
            if row is None or row["mean"] is None:
                continue
            left.plot(100 * row["mean"], y + shift, **style)
            gap = summary.gap(label, summary.baseline)
            if gap is not None:
                right.plot(100 * gap["difference"], y + shift, **style)
            if gap is not None and gap["low"] is not None:
                ends = [100 * gap["low"], 100 * gap["high"]]
                right.plot(ends, [y + shift] * 2, color=style["color"], linewidth=2)
        left.plot([], [], label=summary.name, **style)
    left.set_yticks(range(len(labels)), labels)
    left.set_ylim(len(labels) - 0.5, -0.5)
    for axes in (left, right):
        axes.hlines([y + 0.5 for y in range(len(labels) - 1)], 0, 1, transform=axes.get_yaxis_transform(), **_RULE)
        axes.spines[["top", "right"]].set_visible(False)
    tasks = group[0].tasks
    what = f"average of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0]["name"]
    left.set(xlabel=f"{what}, {' and '.join(sorted(group[0].splits))} split, x 100")
    right.axvline(0, color="black", linewidth=1, linestyle="--")
    right.set(xlabel=f"less {group[0].baseline}, in points (95 % paired bootstrap)")
    figure.legend(
        *left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=min(4, len(group))
    )
    save(figure, path)


def alt(group: list[Summary]) -> str:
    """What the picture shows in words, for those who cannot see it; the tables beside it have every figure."""
    said = []
    for summary in group:
        gaps = {label: summary.gap(label, summary.baseline) for label in summary.labels if label != summary.baseline}
        known = {label: gap for label, gap in gaps.items() if gap is not None}
        if known:
            best = max(known, key=lambda label: known[label]["difference"])
            said.append(f"{summary.name} {best} {gap_text(known[best])}")
    return f"Averages and their differences to {group[0].baseline}, in points; the largest: {', '.join(said) or 'none'}"


_RULE = {"color": "0.88", "linewidth": 0.8, "zorder": 0}
