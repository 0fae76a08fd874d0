"""The demo: GOAT, LoRA and full fine-tuning side by side on the same real data and budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import records
from .errors import UserError
from .recipes import Recipe, load
from .reporting.demo import picture
from .reporting.tables import interval
from .training import Run, train

METHODS = ("goat", "lora", "full")
# What the demo sets in its recipes, and why it cannot be given.
_SET = {
    "method": "it runs goat, lora and full",
    "name": "it names its three runs itself",
    "output_dir": "give --output",
    "evaluation.untrained": "it scores the untrained model once, with its first run",
}


@dataclass(frozen=True)
class Row:
    """One method's line of the demo's table; shares lie in [0, 1]."""

    method: str
    parameters: int
    untrained: float
    trained: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Demo:
    """What the demo found: a line per method, and the accuracy of always saying the most frequent label."""

    rows: list[Row]
    majority: float


def recipe_for(method: str, output: Path, overrides: list[str], source: str = "demo-reviews") -> Recipe:
    """Return the demo's recipe for one method: the same data, epochs and batches for all, its own learning rate.

    Raises `UserError` for an override of what the demo sets itself.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _SET:
            raise UserError(f"{override}: the demo sets {key} itself ({_SET[key]}); leave it out")
    settings = [] if load(source).method.name == method else [f"method={method}"]
    return load(source, [*settings, *overrides, f"name=demo-{method}", f"output_dir={output / method}"])


def run(output: Path, overrides: list[str], tell: Callable[[Row], None], source: str = "demo-reviews") -> Demo:
    """Train the three methods, call `tell` after each, draw the picture into `output`; an older demo is replaced.

    All three start from the same base with the same head (one seed), so the untrained model is scored once.
    """
    rows: list[Row] = []
    runs: list[Run] = []
    for method in METHODS:
        recipe = recipe_for(method, output, overrides, source)
        scored = recipe.evaluation.model_copy(update={"untrained": not rows})
        runs.append(train(recipe.model_copy(update={"evaluation": scored}), overwrite=True))
        rows.append(read_row(method, runs[-1].result, rows[0].untrained if rows else None))
        tell(rows[-1])
    stored = records.read_json(runs[0].path / records.EXPERT_USAGE)
    found = Demo(rows, majority(runs[0].path))
    lines = [vars(row) for row in rows]
    picture(lines, [run.result for run in runs], stored["test"], found.majority, output / "demo.png")
    first = runs[0].result
    origin = {"run_info": {key: first["run_info"][key] for key in ("created_at", "command")}}
    figures = {"rows": lines, "majority": found.majority}
    records.write_json(output / "demo.json", origin | figures | {"meta_info": first["meta_info"]})
    return found


def read_row(method: str, result: dict[str, Any], untrained: float | None) -> Row:
    """Read one method's line out of its result; `untrained` stands in where the run did not score the base itself."""
    info = result["train_info"]
    first, last = info["metrics"][0], info["metrics"][-1]
    total = last["test samples"]
    low, high = interval(round(last["test accuracy"] * total), total)
    return Row(
        method=method,
        parameters=info["num_trainable_params"],
        untrained=first["untrained test accuracy"] if untrained is None else untrained,
        trained=last["test accuracy"],
        low=low,
        high=high,
        seconds=info["train_time"],
    )


def majority(run: Path) -> float:
    """Accuracy of always saying the most frequent label of the scored rows: what any figure must beat."""
    lines = (run / records.PREDICTIONS).read_text(encoding="utf-8").splitlines()
    labels = Counter(json.loads(line)["label"] for line in lines)
    return max(labels.values()) / labels.total()
