"""A plan from start to end: choose learning rates on validation, score the choice on test, say how far apart the methods are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..errors import UserError
from ..recipes.schema import METHODS
from ..training import record
from .plan import MethodPlan, Plan, TaskPlan
from .pool import Tell, run_all
from .statistics import Floats, mean_difference, ranks, spread
from .trials import Trial

Cell = tuple[str, str]  # labels of a task and of a method
Trials = dict[Cell, list[Trial]]
Pair = tuple[Floats, Floats]  # a method's values and the baseline's


def compare(plan: Plan, output: Path, command: str, tell: Tell) -> dict[str, Any]:
    """Run what is missing, then write and return `comparison.json`; finished runs are never repeated.

    A method with a single learning rate has nothing to choose: its runs on validation are left out, unless the plan has no others.
    A plan without seeds ends on the validation split: for development, which must not see the test split.

    Raises `UserError` for a recipe, metric or folder that cannot work, and for a baseline of which no run ended well.
    """
    cells = [(task, method) for task in plan.recipes for method in plan.methods_of(task)]
    tuning = {_key(task, method): _tuning(plan, task, method, output) for task, method in cells}
    run_all([trial for trials in tuning.values() for trial in trials], plan.parallel, tell)
    chosen = {_key(task, method): choose(tuning[_key(task, method)], method.learning_rates) for task, method in cells}
    final = {
        _key(task, method): _final(plan, task, method, chosen[_key(task, method)], output) for task, method in cells
    }
    run_all([trial for trials in final.values() for trial in trials], plan.parallel, tell)
    # What ranks: the runs on test, or on validation at the chosen rate where there are none.
    scored = {key: final[key] or [trial for trial in tuning[key] if trial.rate == chosen[key]] for key in chosen}
    tasks = [_task(plan, task, tuning, scored, output) for task in plan.recipes]
    first = next(trial for trials in [*tuning.values(), *final.values()] for trial in trials)
    summary = {
        "run_info": {"created_at": record.now(), "command": command, "plan": plan.model_dump(mode="json")},
        "tasks": tasks,
        "overall": _overall(plan, tasks, scored),
        "meta_info": record.meta_info(first.recipe),
    }
    records.write_json(output / records.COMPARISON, summary)
    return summary


def choose(trials: list[Trial], rates: list[float]) -> float | None:
    """The learning rate of the best mean over tuning seeds, the smallest of equals; a rate with a failed run is out. None if all are."""
    if not trials:
        return rates[0]
    values: dict[float, list[float | None]] = {}
    for trial in trials:
        values.setdefault(trial.rate, []).append(trial.outcome().value)
    means = {rate: float(np.mean(found)) for rate, found in values.items() if None not in found}  # type: ignore[arg-type]
    return min(means, key=lambda rate: (-means[rate], rate), default=None)


def _key(task: TaskPlan, method: MethodPlan) -> Cell:
    return task.label, method.label


def _tuning(plan: Plan, task: TaskPlan, method: MethodPlan, output: Path) -> list[Trial]:
    """Runs scored on validation; none where there is nothing to choose and test runs follow."""
    if len(method.learning_rates) == 1 and task.seeds:
        return []
    return [
        _trial(plan, task, method, rate, seed, "validation", output)
        for rate in method.learning_rates
        for seed in plan.tuning_seeds
    ]


def _final(plan: Plan, task: TaskPlan, method: MethodPlan, rate: float | None, output: Path) -> list[Trial]:
    """Runs scored on test, at the rate that was chosen; none where no rate worked."""
    return [] if rate is None else [_trial(plan, task, method, rate, seed, "test", output) for seed in task.seeds or []]


def _trial(plan: Plan, task: TaskPlan, method: MethodPlan, rate: float, seed: int, split: str, output: Path) -> Trial:
    folder = output / "runs" / task.label / method.label / f"lr-{rate:g}_seed-{seed}_{split}"
    metric = task.metric if split == "test" else task.tuning_metric
    recipe = plan.recipe(task, method, rate, seed, split, folder)
    return Trial(task.label, method.label, rate, seed, split, metric, recipe)


def _task(plan: Plan, task: TaskPlan, tuning: Trials, scored: Trials, output: Path) -> dict[str, Any]:
    """One task's rows: sweep, values that rank, statistics against the baseline."""
    baseline = scored[task.label, plan.baseline]
    rows = []
    for method in plan.methods_of(task):
        key = _key(task, method)
        difference = _difference(scored[key], baseline, method.label == plan.baseline)
        rows.append(_row(method, tuning[key], scored[key], output) | difference)
    for row, rank in zip(rows, ranks([row["mean"] for row in rows]), strict=True):
        row["rank"] = rank
    metric, split = (task.metric, "test") if task.seeds else (task.tuning_metric, "validation")
    return {"task": task.recipe, "name": task.label, "metric": metric, "split": split, "rows": rows}


def _row(method: MethodPlan, tuning: list[Trial], scored: list[Trial], output: Path) -> dict[str, Any]:
    found = METHODS[method.name]
    outcomes = [(trial, trial.outcome()) for trial in scored]
    values = [outcome.value for _, outcome in outcomes if outcome.value is not None]
    whole = bool(outcomes) and len(values) == len(outcomes)
    infos = [outcome.result["train_info"] for _, outcome in outcomes if outcome.value is not None]
    sweep = [(trial, trial.outcome()) for trial in tuning]
    return {
        "label": method.label,
        "method": method.name,
        "description": found.description,
        "source": found.source,
        "options": scored[0].recipe.method.model_dump(mode="json") if scored else method.options,
        "learning_rate": scored[0].rate if scored else None,
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


def _pair(method: list[Trial], baseline: list[Trial]) -> tuple[Pair, str] | None:
    """Values of both sides by seed, and by example where the metric is a mean over them; None where a run failed."""
    sides = (method, baseline)
    values = [[trial.outcome().value for trial in side] for side in sides]
    if not all(values) or any(value is None for side in values for value in side):
        return None
    if method[0].metric == "accuracy":
        correct = [[trial.correct() for trial in side] for side in sides]
        if all(row is not None for side in correct for row in side):
            return (
                np.array(correct[0], dtype=np.float64),
                np.array(correct[1], dtype=np.float64),
            ), "seeds and examples"
    return (np.array(values[0], dtype=np.float64), np.array(values[1], dtype=np.float64)), "seeds"


def _difference(method: list[Trial], baseline: list[Trial], same: bool) -> dict[str, Any]:
    """The `difference`, `low`, `high` and `paired_over` of a row; None where either side has no whole set of runs."""
    paired = None if same else _pair(method, baseline)
    if paired is None:
        return {"difference": None, "low": None, "high": None, "paired_over": None}
    found = mean_difference([paired[0]])
    return {"difference": found.mean, "low": found.low, "high": found.high, "paired_over": paired[1]}


def _overall(plan: Plan, tasks: list[dict[str, Any]], scored: Trials) -> list[dict[str, Any]]:
    """Mean over tasks of each method's metric and rank, and of its difference to the baseline; None where a task is missing."""
    rows = []
    for method in plan.methods:
        own = [row for task in tasks for row in task["rows"] if row["label"] == method.label]
        whole = len(own) == len(tasks) and all(row["mean"] is not None for row in own)
        rows.append(
            {
                "label": method.label,
                "mean": float(np.mean([row["mean"] for row in own])) if whole else None,
                "mean_rank": float(np.mean([row["rank"] for row in own])) if whole else None,
                **_gap(
                    plan, method.label, lambda label: [scored.get((task.label, label), []) for task in plan.recipes]
                ),
            }
        )
    if all(row["mean"] is None for task in tasks for row in task["rows"]):
        raise UserError(f"plan={plan.name}: no run ended well; the first error is: {_first_error(tasks)}")
    return rows


def _gap(plan: Plan, label: str, runs: Callable[[str], list[list[Trial]]]) -> dict[str, Any]:
    """The mean over tasks of a method's difference to the baseline, with its interval."""
    pairs = [_pair(*sides) for sides in zip(runs(label), runs(plan.baseline), strict=True)]
    if label == plan.baseline or any(pair is None for pair in pairs):
        return {"difference": None, "low": None, "high": None}
    found = mean_difference([pair[0] for pair in pairs if pair is not None])
    return {"difference": found.mean, "low": found.low, "high": found.high}


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
