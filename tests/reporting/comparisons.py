"""A comparison whose every figure can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from goat_peft.cli import main

ROOT = Path(__file__).parents[2]


VALUES = {  # by task and method, in the order of the seeds
    "rte": {"full": [0.60, 0.62], "lora": [0.58, 0.58], "goat": [0.61, 0.65], "goat-2": [0.5, 0.5]},
    "cola": {"full": [0.30, 0.40], "lora": [0.25, 0.35], "goat": [0.30, 0.34], "goat-2": [0.2, 0.2]},
}


def gap(difference: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"difference": difference, "low": low, "high": high}


WIDTHS = {  # how far an interval reaches below and above the difference of two averages; a point where nothing is said
    ("full", "lora"): (0.03, 0.03),
    ("full", "goat"): (0.025, 0.025),
    ("goat", "lora"): (0.015, 0.015),
}


def around(difference: float, below: float = 0.01, above: float = 0.01) -> dict[str, float | None]:
    return gap(difference, difference - below, difference + above)


def made_up(names: tuple[str, ...] = ("rte", "cola")) -> dict[str, Any]:
    """Four methods, two tasks, two seeds, two learning rates."""
    labels = list(VALUES["rte"])
    mean = {(t, label): sum(VALUES[t][label]) / 2 for t in names for label in labels}
    average = {label: sum(mean[t, label] for t in names) / len(names) for label in labels}

    def row(task: str, label: str) -> dict[str, Any]:
        first, second = VALUES[task][label]
        over = "seeds and examples" if task == "rte" else "seeds"
        return {
            "label": label,
            "method": label.removesuffix("-2"),
            "learning_rate": 1e-5 if label == "full" else 2.5e-4,
            "sweep": [],
            "test": [{"seed": 3 + i, "value": v, "error": None} for i, v in enumerate((first, second))],
            "mean": mean[task, label],
            "sd": abs(first - second) / 2**0.5,
            "parameters": 22_000_000 if label == "full" else (400_000 if task == "rte" else 1_200_000),
            "train_time": 10.0 if task == "rte" else 31.0,
            "paired_over": None if label == "lora" else over,
            **(gap(None) if label == "lora" else around(mean[task, label] - mean[task, "lora"])),
        }

    def pair(one: str, other: str) -> dict[str, float | None]:
        below, above = WIDTHS.get((one, other)) or WIDTHS.get((other, one), (0.01, 0.01))[::-1]
        return around(average[one] - average[other], below, above)

    metrics = {"rte": "accuracy", "cola": "matthews"}
    tasks = [
        {"name": t, "metric": metrics[t], "split": "test", "freedom": 1, "rows": [row(t, label) for label in labels]}
        for t in names
    ]
    against = {label: {other: pair(label, other) for other in labels if other != label} for label in labels}
    overall = [
        {
            "label": label,
            "mean": average[label],
            "mean_rank": 2.0,
            **against[label].get("lora", gap(None)),
            "against": against[label],
        }
        for label in labels
    ]
    methods = [
        {"label": label, "learning_rates": [1e-5, 3e-5] if label == "full" else [1e-4, 2.5e-4]} for label in labels
    ]
    methods[0] |= {"options": {}, "overrides": []}  # absent from the others, as in files of before
    packages = {f"{name}-version": "1.2" for name in ("goat-peft", "torch", "transformers", "peft")}
    return {
        "run_info": {
            "created_at": "2026-11-23T10:00:00+00:00",
            "command": "goat compare mine",
            "plan": {
                "common": {"r": 8},
                "recipes": [{"label": t, "rate_factor": 1.0, "overrides": ["model=/tmp/m"]} for t in names],
                "methods": methods,
                "baseline": "lora",
                "candidates": ["goat", "goat-2"],
                "parallel": 1,
            },
            "ran_on": [{"accelerator": "NVIDIA H100", **packages}],
        },
        "tasks": tasks,
        "overall": overall,
        "meta_info": {"system_info": {"accelerator": "cpu", "processor": "a CPU"}, "package_info": packages},
    }


def unranked(data: dict[str, Any], *labels: str) -> None:
    """Take the averages of methods out, and with them all differences to them."""
    for row in data["overall"]:
        if row["label"] in labels:
            row |= {"mean": None, "mean_rank": None, "against": {}, **gap(None)}
        row["against"] = {other: found for other, found in row["against"].items() if other not in labels}


def stored(data: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def cells(text: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def run(*arguments: str) -> Any:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    return stop.value.code
