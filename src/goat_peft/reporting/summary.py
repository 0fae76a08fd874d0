"""A copy of `comparison.json`, read and checked, without the runs it was made from."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import records
from ..errors import UserError
from .stored import fault

_REMEDY = "give a copy of the comparison.json that `goat compare` writes"
_AGAIN = "write the file again with `goat compare`"
_SLACK = 1e-9  # how far a figure may be off for having been rounded
_FULL = "full"  # the method whose gap tables show beside the baseline's
_WHOLE = ("full", "full-moe")  # methods that train every weight, and so are no adapters


@dataclass(frozen=True)
class Summary:
    """What a comparison found, by label of its methods."""

    path: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's stem, which tables and markers are called by."""
        return self.path.stem

    @cached_property
    def plan(self) -> dict[str, Any]:
        return self.data["run_info"]["plan"]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return self.data["tasks"]

    @cached_property
    def labels(self) -> list[str]:
        """The methods in the plan's order."""
        return [row["label"] for row in self.data["overall"]]

    @property
    def baseline(self) -> str:
        return self.plan["baseline"]

    @cached_property
    def full(self) -> str | None:
        """Label of full fine-tuning, if it is among the methods and not the baseline."""
        rows = (row for task in self.tasks for row in task["rows"] if row["method"] == _FULL)
        found = next((row["label"] for row in rows), None)
        return None if found == self.baseline else found

    @cached_property
    def whole(self) -> list[str]:
        """Labels of the methods that train every weight, in the plan's order."""
        found = {row["label"] for task in self.tasks for row in task["rows"] if row["method"] in _WHOLE}
        return [label for label in self.labels if label in found]

    @cached_property
    def overall(self) -> dict[str, dict[str, Any]]:
        return {row["label"]: row for row in self.data["overall"]}

    @cached_property
    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows by task and method; a method that was not to run on a task has none there."""
        return {(task["name"], row["label"]): row for task in self.tasks for row in task["rows"]}

    @property
    def has_pairs(self) -> bool:
        """Whether the file holds the differences of every method to every other; those of before have the baseline's alone."""
        return all("against" in row for row in self.overall.values())

    @property
    def chosen(self) -> bool:
        """Whether learning rates were chosen, from more than one each."""
        return len(self.plan["methods"][0]["learning_rates"]) > 1

    @property
    def splits(self) -> set[str]:
        """What was scored: 'test', 'validation' or both, depending on the task."""
        return {task["split"] for task in self.tasks}

    def gap(self, label: str, other: str) -> dict[str, Any] | None:
        """The difference of two averages, with `low` and `high`; None where one of them has no average or the file does not say."""
        row = self.overall[label]
        if other == self.baseline and row["difference"] is not None:
            return row
        if other == self.baseline and len(self.tasks) == 1:  # files of before have it in the task alone
            own = self.rows.get((self.tasks[0]["name"], label))
            return own if own is not None and own["difference"] is not None else None
        return row.get("against", {}).get(other)


def read_summary(path: Path) -> Summary:
    """Read a comparison.

    Raises:
        UserError: no such file, another kind of file, a damaged one, or a figure that does not follow from the runs beside it.
    """
    if not path.is_file():
        raise UserError(f"file={path}: no such file or folder; {_REMEDY}, or its folder")
    data = records.read_settings(path, "file", _REMEDY)
    wrong = fault(data)
    if wrong is not None:
        raise UserError(f"file={path}: is no comparison, an old or a damaged one ({wrong}); {_REMEDY}")
    summary = Summary(path, data)
    for task in summary.tasks:
        _check_task(summary, task)
    _check_averages(summary)
    return summary


def _check_task(summary: Summary, task: dict[str, Any]) -> None:
    """Mean and spread are those of the row's runs, differences those of two means, and its rate was tried: no figure stands alone."""
    base = summary.rows.get((task["name"], summary.baseline), {}).get("mean")
    for row in task["rows"]:
        what = f"{row['label']} on {task['name']}"
        values = [trial["value"] for trial in row["test"]]
        whole = bool(values) and None not in values
        rate, rates = row["learning_rate"], [trial["learning_rate"] for trial in row["sweep"]]
        if rate is not None and rates and rate not in rates:
            tried = ", ".join(f"{found:g}" for found in dict.fromkeys(rates))
            raise UserError(
                f"file={summary.path}: {what} has learning_rate {rate:g}, and its sweep tried {tried}; {_AGAIN}"
            )
        _agree(summary, what, "mean", row["mean"], math.fsum(values) / len(values) if whole else None)
        _agree(summary, what, "sd", row["sd"], statistics.stdev(values) if whole and len(values) > 1 else None)
        _check_gap(summary, what, row, None if row["label"] == summary.baseline else _less(row["mean"], base))


def _check_averages(summary: Summary) -> None:
    """The same for averages over tasks and the differences of any two of them."""
    for label, row in summary.overall.items():
        what = f"the average of {label}"
        means = [found["mean"] for (_, own), found in summary.rows.items() if own == label]
        whole = len(means) == len(summary.tasks) and None not in means
        _agree(summary, what, "mean", row["mean"], math.fsum(means) / len(means) if whole else None)
    averages = {label: row["mean"] for label, row in summary.overall.items()}
    for label, row in summary.overall.items():
        what = f"the average of {label}"
        expected = None if label == summary.baseline else _less(averages[label], averages[summary.baseline])
        if summary.has_pairs or row["difference"] is not None:  # files of before may have it in their only task
            _check_gap(summary, what, row, expected)
        if not summary.has_pairs:
            continue
        others = [x for x in averages if x != label and _less(averages[label], averages[x]) is not None]
        stray = sorted({*others} ^ {*row["against"]})
        if stray:
            raise UserError(
                f"file={summary.path}: {what}: against {'lacks' if stray[0] in others else 'has'} {stray[0]}; {_AGAIN}"
            )
        for other in others:
            _check_gap(
                summary, f"{what} against {other}", row["against"][other], _less(averages[label], averages[other])
            )


def _less(mean: float | None, other: float | None) -> float | None:
    return None if mean is None or other is None else mean - other


def _check_gap(summary: Summary, what: str, gap: dict[str, Any], expected: float | None) -> None:
    """A difference is `expected`, and lies in its interval where it has one."""
    difference, low, high = gap["difference"], gap["low"], gap["high"]
    _agree(summary, what, "difference", difference, expected)
    if low is None and high is None:
        return
    if difference is None or low is None or high is None or not low - _SLACK <= difference <= high + _SLACK:
        raise UserError(
            f"file={summary.path}: {what}: low {low} and high {high} are no interval around difference {difference}; {_AGAIN}"
        )


def _agree(summary: Summary, what: str, field: str, found: float | None, expected: float | None) -> None:
    if found is None and expected is None:
        return
    if found is None or expected is None or not math.isclose(found, expected, abs_tol=_SLACK):
        raise UserError(
            f"file={summary.path}: {what} has {field} {found}, and the figures beside it say {expected}; {_AGAIN}"
        )
