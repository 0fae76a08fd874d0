"""Runs that a `comparison.json` holds, so that their folders are not needed: what each found, and which of its answers were right."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..errors import UserError, first_line
from ..recipes import Recipe
from ..reporting.summary import Summary, read_summary
from .plan import MethodPlan, Plan, TaskPlan

Correct = list[list[bool]]  # by test set and row, in the data's order


@dataclass(frozen=True)
class Known:
    """One run that ended well.

    `correct` is None where the file does not say it by row, as files of before; `places` are the accelerators and versions of all runs of the file.
    """

    value: float
    correct: Correct | None
    train_info: dict[str, Any]
    places: list[dict[str, str | None]]


Archive = dict[tuple[str, str], Known]  # by metric and recipe


def identity(metric: str, recipe: Recipe) -> tuple[str, str]:
    """What makes two runs the same: their figure and every setting but the folder."""
    return metric, recipe.model_copy(update={"output_dir": None}).model_dump_json()


def read_known(files: list[Path]) -> Archive:
    """The runs of comparisons, the last file's where several hold the same one.

    Raises:
        UserError: a file that is no comparison, does not agree with itself, or whose plan or recipes this version does not know.
    """
    found: Archive = {}
    for path in files:
        summary = read_summary(path)
        try:
            found |= dict(_runs(summary, Plan.model_validate(summary.plan)))
        except (UserError, ValidationError, ValueError) as error:
            raise UserError(
                f"known={path}: its runs cannot be read again ({first_line(error)}); leave it out"
            ) from None
    return found


def _runs(summary: Summary, plan: Plan) -> Iterator[tuple[tuple[str, str], Known]]:
    """Every run of a file that ended well: those that chose a rate, then those that rank, which know more."""
    places = summary.data["run_info"].get("ran_on", [])
    for task in plan.recipes:
        for method in plan.methods_of(task):
            row = summary.rows.get((task.label, method.label))
            if row is None:
                continue
            for trial in row["sweep"]:
                if trial["value"] is not None:
                    name = _name(plan, task, method, trial["learning_rate"], trial["seed"], "validation")
                    yield name, Known(trial["value"], None, {}, places)
            split = "test" if task.seeds else "validation"
            for trial in row["test"]:
                if trial["value"] is not None:
                    name = _name(plan, task, method, row["learning_rate"], trial["seed"], split)
                    yield name, Known(trial["value"], unpacked(trial.get("correct")), _costs(row, trial), places)


def _name(plan: Plan, task: TaskPlan, method: MethodPlan, rate: float, seed: int, split: str) -> tuple[str, str]:
    metric = task.metric if split == "test" else task.tuning_metric
    return identity(metric, plan.recipe(task, method, rate, seed, split, Path()))


def _costs(row: dict[str, Any], trial: dict[str, Any]) -> dict[str, Any]:
    """What a result says of a run's size and cost; files of before have time and memory of a method's runs together."""
    return {
        "num_trainable_params": row["parameters"],
        "num_total_params": row["all_parameters"],
        "train_time": trial.get("train_time", row["train_time"]),
        "accelerator_memory_max": trial.get("memory", row["memory"]),
    }


def packed(correct: Correct | None) -> list[dict[str, Any]] | None:
    """Right and wrong answers as JSON, a bit each: for each test set its `rows`, and in base64 which are `right`, eight to a byte from the highest bit on."""
    if correct is None:
        return None
    return [
        {"rows": len(block), "right": base64.b64encode(np.packbits(np.array(block, dtype=bool)).tobytes()).decode()}
        for block in correct
    ]


def unpacked(blocks: list[dict[str, Any]] | None) -> Correct | None:
    """What `packed` was given; raise `ValueError` for blocks that are damaged."""
    if blocks is None:
        return None
    found = []
    for block in blocks:
        data = np.frombuffer(base64.b64decode(block["right"], validate=True), dtype=np.uint8)
        if len(data) != -(-block["rows"] // 8):
            raise ValueError(f"correct: {len(data)} bytes do not hold {block['rows']} rows")
        found.append(np.unpackbits(data, count=block["rows"]).astype(bool).tolist())
    return found
