"""A plan from start to end: choose learning rates on validation, score the choice on test, say how far apart the methods are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..errors import UserError
from ..recipes.schema import METHODS
from ..training import record
from .plan import MethodPlan, Plan
from .pool import Tell, run_all
from .statistics import paired_difference, ranks, spread
from .trials import Trial


def compare(plan: Plan, output: Path, command: str, tell: Tell) -> dict[str, Any]:
    """Run what is missing, then write and return `comparison.json`; finished runs are never repeated.

    Raises `UserError` for a recipe, metric or folder that cannot work, and for a baseline of which no run ended well.
    """
    tuning = {key: _trials(plan, *key, "validation", output) for key in _cells(plan)}
    run_all([trial for trials in tuning.values() for trial in trials], plan.parallel, tell)
    chosen = {key: choose(trials, plan.metric) for key, trials in tuning.items()}
    final = {
        (task, method.label): [
            _trial(plan, task, method, chosen[task, method.label], seed, "test", output) for seed in plan.seeds
        ]
        for task in plan.recipes
        for method in plan.methods
        if chosen[task, method.label] is not None
    }
    run_all([trial for trials in final.values() for trial in trials], plan.parallel, tell)
    tasks = [_task(plan, task, tuning, final, output) for task in plan.recipes]
    first = next(iter(tuning.values()))[0]
    summary = {
        "run_info": {"created_at": record.now(), "command": command, "plan": plan.model_dump(mode="json")},
        "tasks": tasks,
        "overall": _overall(plan, tasks),
        "meta_info": record.meta_info(first.recipe),
    }
    records.write_json(output / records.COMPARISON, summary)
    return summary


def choose(trials: list[Trial], metric: str) -> float | None:
    """The learning rate of the best mean over tuning seeds, the smallest of equals; a rate with a failed run is out. None if all are."""
    values: dict[float, list[float | None]] = {}
    for trial in trials:
        values.setdefault(trial.rate, []).append(trial.outcome(metric).value)
    means = {rate: float(np.mean(found)) for rate, found in values.items() if None not in found}  # type: ignore[arg-type]
    return min(means, key=lambda rate: (-means[rate], rate), default=None)


def _cells(plan: Plan) -> list[tuple[str, str]]:
    return [(task, method.label) for task in plan.recipes for method in plan.methods]


def _trials(plan: Plan, task: str, label: str, split: str, output: Path) -> list[Trial]:
    method = next(method for method in plan.methods if method.label == label)
    return [
        _trial(plan, task, method, rate, seed, split, output)
        for rate in method.learning_rates
        for seed in plan.tuning_seeds
    ]


def _trial(plan: Plan, task: str, method: MethodPlan, rate: float | None, seed: int, split: str, output: Path) -> Trial:
    assert rate is not None
    folder = output / "runs" / Path(task).stem / method.label / f"lr-{rate:g}_seed-{seed}_{split}"
    return Trial(task, method.label, rate, seed, split, plan.recipe(task, method, rate, seed, split, folder))


def _task(
    plan: Plan, task: str, tuning: dict[Any, list[Trial]], final: dict[Any, list[Trial]], output: Path
) -> dict[str, Any]:
    """One task's rows: sweep, test values, statistics against the baseline."""
    rows = [
        _row(plan, method, tuning[task, method.label], final.get((task, method.label), []), output)
        for method in plan.methods
    ]
    baseline = final.get((task, plan.baseline), [])
    for row, rank in zip(rows, ranks([row["mean"] for row in rows]), strict=True):
        row["rank"] = rank
        row |= _difference(final.get((task, row["label"]), []), baseline, plan, row["label"])
    return {"task": task, "name": Path(task).stem, "metric": plan.metric, "rows": rows}


def _row(plan: Plan, method: MethodPlan, tuning: list[Trial], final: list[Trial], output: Path) -> dict[str, Any]:
    found = METHODS[method.name]
    outcomes = [(trial, trial.outcome(plan.metric)) for trial in final]
    values = [outcome.value for _, outcome in outcomes if outcome.value is not None]
    whole = bool(outcomes) and len(values) == len(outcomes)
    infos = [outcome.result["train_info"] for _, outcome in outcomes if outcome.value is not None]
    sweep = [(trial, trial.outcome(plan.metric)) for trial in tuning]
    return {
        "label": method.label,
        "method": method.name,
        "description": found.description,
        "source": found.source,
        "options": final[0].recipe.method.model_dump(mode="json") if final else method.options,
        "learning_rate": final[0].rate if final else None,
        "sweep": [
            {"learning_rate": t.rate, "seed": t.seed, "value": o.value, "error": o.error, "run": _relative(t, output)}
            for t, o in sweep
        ],
        "test": [
            {"seed": t.seed, "value": o.value, "error": o.error, "run": _relative(t, output)} for t, o in outcomes
        ],
        "mean": float(np.mean(values)) if whole else None,
        "sd": spread(values) if whole else None,
        "parameters": infos[0]["num_trainable_params"] if infos else None,
        "all_parameters": infos[0]["num_total_params"] if infos else None,
        "train_time": float(np.mean([info["train_time"] for info in infos])) if infos else None,
        "memory": max((info["accelerator_memory_max"] for info in infos), default=None),
    }


def _relative(trial: Trial, output: Path) -> str:
    return trial.path.relative_to(output).as_posix()


def _difference(method: list[Trial], baseline: list[Trial], plan: Plan, label: str) -> dict[str, Any]:
    """The `difference`, `low`, `high` and `paired_over` of a row; None where either side has no whole set of runs."""
    nothing = {"difference": None, "low": None, "high": None, "paired_over": None}
    values = [[trial.outcome(plan.metric).value for trial in side] for side in (method, baseline)]
    if label == plan.baseline or not all(values) or any(value is None for side in values for value in side):
        return nothing
    correct = (
        [[trial.correct() for trial in side] for side in (method, baseline)] if plan.metric == "accuracy" else None
    )
    if correct is not None and all(row is not None for side in correct for row in side):
        found, over = paired_difference(*(np.array(side, dtype=np.float64) for side in correct)), "seeds and examples"
    else:
        found, over = paired_difference(*(np.array(side, dtype=np.float64) for side in values)), "seeds"
    return {"difference": found.mean, "low": found.low, "high": found.high, "paired_over": over}


def _overall(plan: Plan, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over tasks of each method's metric and rank; None where a task is missing."""
    rows = []
    for index, method in enumerate(plan.methods):
        own = [task["rows"][index] for task in tasks]
        whole = all(row["mean"] is not None for row in own)
        rows.append(
            {
                "label": method.label,
                "mean": float(np.mean([row["mean"] for row in own])) if whole else None,
                "mean_rank": float(np.mean([row["rank"] for row in own])) if whole else None,
            }
        )
    if all(row["mean"] is None for row in rows):
        raise UserError(f"plan={plan.name}: no run ended well; the first error is: {_first_error(tasks)}")
    return rows


def _first_error(tasks: list[dict[str, Any]]) -> str:
    return next(
        (
            trial["error"]
            for task in tasks
            for row in task["rows"]
            for trial in [*row["sweep"], *row["test"]]
            if trial["error"]
        ),
        "none",
    )
