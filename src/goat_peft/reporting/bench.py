"""The picture of the speed measurements: training steps and decoding against LoRA, and how the step grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import records
from ..errors import UserError, first_line
from .style import COLOURS, save

_MEASURE = "measure first, with goat bench train-step and decode"
NAMES = {"floor": "frozen model", "lora": "PEFT LoRA", "loop": "loop over experts", "goat": "GOAT"}
MAIN = {"shape": "llama-2-7b", "r": 32, "num_experts": 8, "top_k": 2}
STEP = MAIN | {"batch": 4, "length": 1024, "dropout": 0.0}
STEPS = {
    "eager": {"cuda_graph": False, "compiled": False, "layers": 16},
    "CUDA graph": {"cuda_graph": True, "compiled": False, "layers": 16},
    "compiled": {"cuda_graph": False, "compiled": True, "layers": 4},
}
TOKENS = {
    f"batch {batch},\n{'graph' if graph else 'eager'}": {"batch": batch, "cuda_graph": graph}
    for batch in (1, 8)
    for graph in (False, True)
}


def draw(folder: Path, path: Path) -> None:
    """Draw `train_step.json` and `decode.json` of `folder`: of each workload its latest run on a GPU that measured GOAT and LoRA.

    Raises `UserError` for a folder without rows of the picture's workloads.
    """
    measured, decoded = _read(folder, "train_step.json"), _read(folder, "decode.json")
    steps = {kind: _latest(measured, STEP | wanted, "over_lora") for kind, wanted in STEPS.items()}
    tokens = {
        kind: _latest(decoded, MAIN | {"layers": 16, "autocast": False} | wanted, "over_lora")
        for kind, wanted in TOKENS.items()
    }
    for groups, name in ((steps, "train_step.json"), (tokens, "decode.json")):
        if not any(groups.values()):
            raise UserError(
                f"results={folder}: {name} has no row of GOAT against LoRA on a GPU with the command's own workload; {_MEASURE}"
            )
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _bars(left, steps, "training step, PEFT LoRA = 1")
    _bars(middle, tokens, "one decoded token, PEFT LoRA = 1")
    _growth(right, measured)
    save(figure, path)


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file."""
    if not (folder / name).is_file():
        raise UserError(f"results={folder}: has no {name}; {_MEASURE}")
    try:
        return records.read_rows(folder / name)
    except (OSError, ValueError) as error:
        raise UserError(f"results={folder}: {name} cannot be read ({first_line(error)}); {_MEASURE}") from None


def _latest(rows: list[dict[str, Any]], wanted: dict[str, Any], ratio: str) -> dict[str, float]:
    """A ratio of each method in the latest run of one workload on a GPU that measured GOAT and LoRA; nothing where there is none.

    Rows of one run share date and command; methods are never taken from different runs, whose machines may differ.
    """
    runs: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        on_gpu = row.get("peak_gib") is not None  # nothing else counts its memory, see `bench.measure.peak_gib`
        if on_gpu and isinstance(row.get(ratio), float) and all(row.get(key) == value for key, value in wanted.items()):
            runs.setdefault((str(row.get("date")), str(row.get("command"))), {})[str(row.get("method"))] = row[ratio]
    whole = {run: found for run, found in runs.items() if {"lora", "goat"} <= found.keys()}
    return whole[max(whole)] if whole else {}


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
    ranks = {r: _latest(rows, STEP | STEPS["CUDA graph"] | {"r": r}, "over_floor") for r in (8, 32, 64)}
    for method, marker in (("lora", "s"), ("goat", "o")):
        points = [(r, found[method]) for r, found in ranks.items() if method in found]
        colour = COLOURS[("goat", "lora").index(method)]
        axes.plot([r for r, _ in points], [v for _, v in points], marker=marker, color=colour, label=NAMES[method])
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label=NAMES["floor"])
    axes.set(xlabel="total rank r", ylabel="training step (CUDA graph), frozen model = 1", ylim=(0.95, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ranks), [str(r) for r in ranks])
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
