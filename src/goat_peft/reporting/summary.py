"""A copy of `comparison.json`, read and checked, without the runs it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import records
from ..errors import UserError

_REMEDY = "give a copy of the comparison.json that `goat compare` writes"
_FULL = "full"  # the method whose gap tables show beside the baseline's


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
            own = self.rows[self.tasks[0]["name"], label]
            return own if own["difference"] is not None else None
        return row.get("against", {}).get(other)


def read_summary(path: Path) -> Summary:
    """Read a comparison.

    Raises:
        UserError: no such file, another kind of file, or a mean that is not its runs' mean.
    """
    if not path.is_file():
        raise UserError(f"file={path}: no such file or folder; {_REMEDY}, or its folder")
    data = records.read_settings(path, "file", _REMEDY)
    summary = Summary(path, data)
    try:
        _check(summary)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"file={path}: is no comparison, or an old one (lacks {error}); {_REMEDY}") from None
    return summary


def _check(summary: Summary) -> None:
    """Every mean is the mean of the runs beside it, so that no figure of a table stands alone; `KeyError` for what tables need and is not there."""
    for described in summary.tasks:
        _ = described["name"], described["metric"], described["split"]
    for (task, label), row in summary.rows.items():
        values = [trial["value"] for trial in row["test"]]
        whole = bool(values) and None not in values
        _agree(summary, f"{label} on {task}", row["mean"], values if whole else [])
    for label in summary.labels:
        means = [row["mean"] for (_, own), row in summary.rows.items() if own == label]
        whole = len(means) == len(summary.tasks) and None not in means
        _agree(summary, f"the average of {label}", summary.overall[label]["mean"], means if whole else [])
    _ = summary.overall[summary.baseline], summary.plan["common"], summary.data["meta_info"]["system_info"]


def _agree(summary: Summary, what: str, mean: float | None, values: list[float]) -> None:
    expected = math.fsum(values) / len(values) if values else None
    if (mean is None) != (expected is None) or (
        mean is not None and expected is not None and not math.isclose(mean, expected, abs_tol=1e-9)
    ):
        raise UserError(
            f"file={summary.path}: {what} has mean {mean}, and its runs say {expected}; write the file again with `goat compare`"
        )
