"""A plan from start to end: choose learning rates on validation, score the choice on test, say how far apart the methods are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..errors import UserError
from ..recipes import Recipe
from ..recipes.registry import PLUGINS
from ..recipes.schema import METHODS, Data
from ..tasks import load_splits
from ..training import record
from .answers import packed
from .known import Archive, identity, merged, read_own
from .measured import Measured, check_rows, measure, ran_on
from .plan import MethodPlan, Plan, TaskPlan
from .pool import Tell, run_all
from .statistics import Difference, average, ranks, spread
from .trials import Trial

Cell = tuple[str, str]  # labels of a task and of a method
Trials = dict[Cell, list[Trial]]


@dataclass(frozen=True)
class _Runs:
    """Where runs are found: those of this comparison in a folder, others in files."""

    output: Path
    known: Archive


def compare(plan: Plan, output: Path, command: str, tell: Tell, known: Archive | None = None) -> dict[str, Any]:
    """Run what is missing, then write and return `comparison.json`; finished runs are never repeated, nor those that are `known` from files.

    A method with a single learning rate has nothing to choose: its runs on validation are left out, unless the plan has no others.
    A plan without seeds ends on the validation split: for development, which must not see the test split.

    Raises `UserError` for a recipe, metric or folder that cannot work, and for a baseline of which no run ended well.
    """
    runs = _Runs(output, merged(known or {}, read_own(output)))
    cells = [(task, method) for task in plan.recipes for method in plan.methods_of(task)]
    tuning = {_key(task, method): _tuning(plan, task, method, runs) for task, method in cells}
    first = {_key(task, method): _first(plan, task, method, tuning[_key(task, method)], runs) for task, method in cells}
    if plan.parallel > 1:
        for trials in first.values():
            _check_workers_know(trials[0].recipe)
    for task in plan.recipes:
        _check_data([trial for method in plan.methods_of(task) for trial in first[_key(task, method)]])
    certain = [trial for trials in first.values() for trial in trials]
    if known and not _holds_any(known, certain) and not _holds_any(known, _possible(plan, cells, runs)):
        raise UserError(
            f"known: none of its {len(known)} runs is in this plan, which needs the same figure and the same value of every setting but the folder; leave it out, or change the plan"
        )
    run_all([trial for trials in tuning.values() for trial in trials], plan.parallel, tell)
    for task in plan.recipes:
        check_rows([tuning[_key(task, method)] for method in plan.methods_of(task)])
    chosen = {
        _key(task, method): choose(tuning[_key(task, method)], plan.rates(task, method)) for task, method in cells
    }
    final = {_key(task, method): _final(plan, task, method, chosen[_key(task, method)], runs) for task, method in cells}
    run_all([trial for trials in final.values() for trial in trials], plan.parallel, tell)
    # What ranks: the runs on test, or on validation at the chosen rate where there are none.
    scored = {key: final[key] or [trial for trial in tuning[key] if trial.rate == chosen[key]] for key in chosen}
    generator = np.random.default_rng(0)
    measured = [
        measure({method.label: scored[_key(task, method)] for method in plan.methods_of(task)}, generator)
        for task in plan.recipes
    ]
    tasks = [_task(plan, task, tuning, scored, own, runs) for task, own in zip(plan.recipes, measured, strict=True)]
    summary = {
        "run_info": {
            "created_at": record.now(),
            "command": command,
            "plan": plan.model_dump(mode="json"),
            "ran_on": ran_on([trial for trials in [*tuning.values(), *final.values()] for trial in trials]),
        },
        "tasks": tasks,
        "overall": _overall(plan, tasks, measured),
        "meta_info": record.meta_info(certain[0].recipe),
    }
    records.write_json(output / records.COMPARISON, summary)
    return summary


def _first(plan: Plan, task: TaskPlan, method: MethodPlan, tuning: list[Trial], runs: _Runs) -> list[Trial]:
    """A cell's runs that are certain before any has ended: those that choose its rate, or are scored at the only one."""
    return tuning or _final(plan, task, method, plan.rates(task, method)[0], runs)


def _possible(plan: Plan, cells: list[tuple[TaskPlan, MethodPlan]], runs: _Runs) -> Iterator[Trial]:
    """Every run that may come to rank, whichever rates are chosen."""
    for task, method in cells:
        for rate in plan.rates(task, method):
            yield from _final(plan, task, method, rate, runs)


def _holds_any(known: Archive, trials: Iterable[Trial]) -> bool:
    return any(identity(trial.metric, trial.recipe) in known for trial in trials)


def _check_data(trials: list[Trial]) -> None:
    """Read the data of a task of which something has not been run yet, so that a wrong path ends the comparison before its first run, not each of its runs."""
    pending = (trial for trial in trials if trial.known is None and not records.is_finished(trial.path))
    trial = next(pending, None)
    data = getattr(trial.recipe.task, "data", None) if trial is not None else None
    if isinstance(data, Data):
        load_splits(data)


def _check_workers_know(recipe: Recipe) -> None:
    """Raise `UserError` for a method or task that only this process has registered."""
    shared = {"goat_peft", *(plugin.module.partition(".")[0] for plugin in entry_points(group=PLUGINS))}
    for field, block, name in (
        ("methods", recipe.method, recipe.method.name),
        ("recipes", recipe.task, recipe.task.type),
    ):
        module = type(block).__module__
        if module.partition(".")[0] not in shared:
            raise UserError(
                f"plan.{field}: {name} is registered by {module}, which worker processes do not import; give parallel=1, or install it as a plug-in (docs/extending.md)"
            )


@dataclass(frozen=True)
class Outlook:
    """How many runs a task needs to choose learning rates and to score the choice, how many of them are finished, and how many of those known from files."""

    task: str
    methods: int
    tuning: int
    tuned: int
    final: int
    scored: int
    known: int


def outlook(plan: Plan, output: Path, known: Archive | None = None) -> list[Outlook]:
    """What `compare` would run, task by task, without running it; raises `UserError` for the recipes and folders that it would refuse at the start."""
    runs = _Runs(output, merged(known or {}, read_own(output)))
    found = []
    for task in plan.recipes:
        methods = plan.methods_of(task)
        tuning = [_tuning(plan, task, method, runs) for method in methods]
        if plan.parallel > 1:
            for method, trials in zip(methods, tuning, strict=True):
                _check_workers_know(_first(plan, task, method, trials, runs)[0].recipe)
        tried = [trial for trials in tuning for trial in trials]
        final = [
            trial
            for method, trials in zip(methods, tuning, strict=True)
            if all(trial.outcome().result for trial in trials)  # ended, well or not; else the rate is not chosen yet
            for trial in _final(plan, task, method, choose(trials, plan.rates(task, method)), runs)
        ]
        tuned, scored = sum(trial.finished() for trial in tried), sum(trial.finished() for trial in final)
        from_files = sum(trial.known is not None for trial in [*tried, *final])
        needed = len(methods) * len(task.seeds or [])
        found.append(Outlook(task.label, len(methods), len(tried), tuned, needed, scored, from_files))
    return found


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


def _tuning(plan: Plan, task: TaskPlan, method: MethodPlan, runs: _Runs) -> list[Trial]:
    """Runs scored on validation; none where there is nothing to choose and test runs follow."""
    if len(method.learning_rates) == 1 and task.seeds:
        return []
    return [
        _trial(plan, task, method, rate, seed, "validation", runs)
        for rate in plan.rates(task, method)
        for seed in task.tuning_seeds or []
    ]


def _final(plan: Plan, task: TaskPlan, method: MethodPlan, rate: float | None, runs: _Runs) -> list[Trial]:
    """Runs scored on test, at the rate that was chosen; none where no rate worked."""
    return [] if rate is None else [_trial(plan, task, method, rate, seed, "test", runs) for seed in task.seeds or []]


def _trial(plan: Plan, task: TaskPlan, method: MethodPlan, rate: float, seed: int, split: str, runs: _Runs) -> Trial:
    folder = runs.output / "runs" / task.label / method.label / f"lr-{rate:g}_seed-{seed}_{split}"
    metric = task.metric if split == "test" else task.tuning_metric
    recipe = plan.recipe(task, method, rate, seed, split, folder)
    known = runs.known.get(identity(metric, recipe)) if runs.known and not records.is_finished(folder) else None
    return Trial(task.label, method.label, rate, seed, split, metric, recipe, known)


def _task(
    plan: Plan, task: TaskPlan, tuning: Trials, scored: Trials, measured: Measured, runs: _Runs
) -> dict[str, Any]:
    """One task's rows: sweep, values that rank, statistics against the baseline (None where either side has no whole set of runs)."""
    rows = []
    for method in plan.methods_of(task):
        key = _key(task, method)
        paired = method.label != plan.baseline and {method.label, plan.baseline} <= set(measured.scores.labels)
        gap = _difference(measured.scores.difference(method.label, plan.baseline)) if paired else _nothing()
        own = gap | {"paired_over": measured.over if paired else None}
        rows.append(_row(method, tuning[key], scored[key], runs) | own)
    for row, rank in zip(rows, ranks([row["mean"] for row in rows]), strict=True):
        row["rank"] = rank
    metric, split = (task.metric, "test") if task.seeds else (task.tuning_metric, "validation")
    about = {"task": task.recipe, "name": task.label, "metric": metric, "split": split}
    return about | {"freedom": measured.scores.freedom[0], "rows": rows}


def _row(method: MethodPlan, tuning: list[Trial], scored: list[Trial], runs: _Runs) -> dict[str, Any]:
    found = METHODS[method.name]
    outcomes = [(trial, trial.outcome()) for trial in scored]
    values = [outcome.value for _, outcome in outcomes if outcome.value is not None]
    whole = bool(outcomes) and len(values) == len(outcomes)
    infos = [outcome.result["train_info"] for _, outcome in outcomes if outcome.value is not None]
    return {
        "label": method.label,
        "method": method.name,
        "description": found.description,
        "source": found.source,
        "options": scored[0].recipe.method.model_dump(mode="json") if scored else method.options,
        "learning_rate": scored[0].rate if scored else None,
        "sweep": [{"learning_rate": trial.rate} | _run(trial, runs) for trial in tuning],
        "test": [_run(trial, runs) for trial in scored],
        "mean": float(np.mean(values)) if whole else None,
        "sd": spread(values) if whole else None,
        "parameters": infos[0]["num_trainable_params"] if infos else None,
        "all_parameters": infos[0]["num_total_params"] if infos else None,
        "train_time": float(np.mean([info["train_time"] for info in infos])) if infos else None,
        "memory": max((info["accelerator_memory_max"] for info in infos), default=None),
    }


def _run(trial: Trial, runs: _Runs) -> dict[str, Any]:
    """One run, with all that a comparison needs of it, so that `known.read_known` has it back; a failed one has its error alone."""
    outcome = trial.outcome()
    found = {"seed": trial.seed, "value": outcome.value, "error": outcome.error}
    # Where it lies: in this comparison's folder, or in a file.
    folder = trial.path.relative_to(runs.output).as_posix() if trial.known is None else None
    found |= {"run": folder, "file": None if trial.known is None else trial.known.file}
    if outcome.value is None:
        return found
    info = {name: outcome.result["train_info"][name] for name in _INFO}
    return found | {
        "settings": identity(trial.metric, trial.recipe),
        "info": info,
        "answers": packed(trial.answers),
    }


# What a result says of a run's size and cost: parameters, seconds, bytes.
_INFO = ("num_trainable_params", "num_total_params", "train_time", "accelerator_memory_max")


def _nothing() -> dict[str, Any]:
    return {"difference": None, "low": None, "high": None}


def _overall(plan: Plan, tasks: list[dict[str, Any]], measured: list[Measured]) -> list[dict[str, Any]]:
    """Mean over tasks of each method's metric and rank, and of its difference to the baseline and to every other method.

    A method that is missing on a task has no means, and is in nobody's differences.
    """
    if all(row["mean"] is None for task in tasks for row in task["rows"]):
        raise UserError(f"plan={plan.name}: no run ended well; the first error is: {_first_error(tasks)}")
    suite = average([task.scores for task in measured])
    rows = []
    for method in plan.methods:
        own = [row for task in tasks for row in task["rows"] if row["label"] == method.label]
        whole = method.label in suite.labels
        others = [label for label in suite.labels if whole and label != method.label]
        against = {label: _difference(suite.difference(method.label, label)) for label in others}
        rows.append(
            {
                "label": method.label,
                "mean": float(np.mean([row["mean"] for row in own])) if whole else None,
                "mean_rank": float(np.mean([row["rank"] for row in own])) if whole else None,
                **against.get(plan.baseline, _nothing()),
                "against": against,
            }
        )
    return rows


def _difference(found: Difference) -> dict[str, Any]:
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
