"""The picture of the speed measurements: training steps and decoding against LoRA, and how the step grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import records
from .style import COLOURS, save

NAMES = {"floor": "frozen model", "lora": "PEFT LoRA", "loop": "loop over experts", "goat": "GOAT"}
MAIN = {"shape": "llama-2-7b", "batch": 4, "length": 1024, "r": 32, "num_experts": 8}
KINDS = {
    "eager": {"cuda_graph": False, "compiled": False, "dropout": 0.0, "layers": 16},
    "CUDA graph": {"cuda_graph": True, "compiled": False, "dropout": 0.0, "layers": 16},
    "compiled": {"cuda_graph": False, "compiled": True, "dropout": 0.0},
}


def draw(folder: Path, path: Path) -> None:
    """Draw `train_step.json` and `decode.json` of `folder`; of rows measured more than once the latest counts."""
    steps, tokens = records.read_json(folder / "train_step.json"), records.read_json(folder / "decode.json")
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _bars(left, {kind: _ratios(steps, MAIN | wanted) for kind, wanted in KINDS.items()}, "training step, PEFT LoRA = 1")
    kinds = {
        f"batch {batch},\n{'graph' if graph else 'eager'}": _ratios(tokens, {"batch": batch, "cuda_graph": graph})
        for batch in (1, 8)
        for graph in (False, True)
    }
    _bars(middle, kinds, "one decoded token, PEFT LoRA = 1")
    _growth(right, steps)
    save(figure, path)


def _ratios(rows: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, float]:
    """The latest `over_lora` of each method among the rows of one workload."""
    same = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return {row["method"]: row["over_lora"] for row in same if row.get("over_lora")}


def _bars(axes: Axes, groups: dict[str, dict[str, float]], label: str) -> None:
    """A group of bars for each kind; the loop is left to the table, it would flatten the rest."""
    methods = [method for method in NAMES if method != "loop" and any(method in group for group in groups.values())]
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        colour = COLOURS[("goat", "lora", "floor").index(method)]
        xs = [index + (place - (len(methods) - 1) / 2) * width for index in range(len(groups))]
        heights = [group.get(method, 0.0) for group in groups.values()]
        bars = axes.bar(xs, heights, width * 0.92, label=NAMES[method], color=colour)
        axes.bar_label(bars, labels=[f"{height:.2f}" if height else "" for height in heights], fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(
        ylabel=label, ylim=(0, 1.25 * max(group.get(method, 0.0) for group in groups.values() for method in methods))
    )
    axes.legend(frameon=False, ncols=len(methods), fontsize=8, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def _growth(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """GOAT's and LoRA's step over the frozen model's, by total rank."""
    found: dict[str, dict[int, float]] = {"lora": {}, "goat": {}}
    for row in rows:
        base = MAIN | KINDS["CUDA graph"]
        if row["method"] in found and all(row.get(key) == value for key, value in base.items() if key != "r"):
            found[row["method"]][row["r"]] = row["over_floor"]
    for method, marker in (("lora", "s"), ("goat", "o")):
        points = sorted(found[method].items())
        colour = COLOURS[("goat", "lora").index(method)]
        axes.plot([r for r, _ in points], [v for _, v in points], marker=marker, color=colour, label=NAMES[method])
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label=NAMES["floor"])
    axes.set(xlabel="total rank r", ylabel="training step (CUDA graph), frozen model = 1", ylim=(0.95, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks([8, 32, 64], ["8", "32", "64"])
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
