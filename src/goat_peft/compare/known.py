"""Runs that a `comparison.json` holds, so that their folders are not needed: what each found and cost, and which of its answers were right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..errors import UserError
from ..recipes import Recipe
from ..reporting.summary import Summary, read_summary
from ..training import digests
from .answers import Answers, unpacked


@dataclass(frozen=True)
class Known:
    """One run that ended well. `info` is what its result says of size and cost; `places` are the devices and versions of all runs of its file."""

    value: float
    info: dict[str, Any]
    answers: list[Answers] | None
    places: list[dict[str, str | None]]
    file: str


Archive = dict[str, Known]  # by `identity`


def identity(metric: str, recipe: Recipe) -> str:
    """Digest of what makes two runs the same: the figure that counts, and every setting of the recipe but its folder."""
    return digests.of_value([metric, recipe.model_copy(update={"output_dir": None}).model_dump(mode="json")])


def read_known(files: list[Path]) -> Archive:
    """The runs of comparisons, given as files or as folders that hold one; of a run in several files the one that has its answers.

    Raises:
        UserError: a file that is no comparison, does not agree with itself, is older than the runs' `settings`, or gives a run another figure than
            a file before it.
    """
    found: Archive = {}
    for given in files:
        path = given / records.COMPARISON if given.is_dir() else given
        try:
            summary = read_summary(path)
        except UserError as error:
            raise UserError(f"known={path}: {str(error).removeprefix(f'file={path}: ')}") from None
        runs = dict(_runs(summary))
        if not runs:
            raise UserError(f"known={path}: none of its runs says its settings, as files of before; leave it out")
        for name, run in runs.items():
            before = found.get(name)
            if before is not None and before.value != run.value:
                raise UserError(
                    f"known={path}: gives {run.value} for a run of which {before.file} says {before.value}; give one of the two"
                )
            if before is None or before.answers is None:
                found[name] = run
    return found


def read_own(output: Path) -> Archive:
    """Runs that the comparison in this folder knew from files when it was last summed up; none where there is none, or a damaged one."""
    path = output / records.COMPARISON
    try:
        return {name: run for name, run in _runs(read_summary(path)) if run.file != str(path)}
    except UserError:
        return {}


def _runs(summary: Summary) -> Iterator[tuple[str, Known]]:
    """Every run of a file that ended well and says its settings; raise `UserError` for answers that are damaged or do not give the run's figure."""
    places = summary.data["run_info"].get("ran_on", [])
    for task in summary.tasks:
        shares = any("examples" in (row.get("paired_over") or "") for row in task["rows"])
        for row in task["rows"]:
            for run in [*row["sweep"], *row["test"]]:
                if run["value"] is None or run.get("settings") is None or run.get("info") is None:
                    continue
                try:
                    answers = unpacked(run.get("answers"))
                    if shares and run in row["test"]:
                        _check(run["value"], answers)
                except ValueError as error:
                    raise UserError(
                        f"known={summary.path}: {row['label']} on {task['name']}, seed {run['seed']}: {error}; give the file as `goat compare` wrote it"
                    ) from None
                file = run.get("file") or str(summary.path)
                yield run["settings"], Known(run["value"], run["info"], answers, places, file)


def _check(value: float, answers: list[Answers] | None) -> None:
    """Raise `ValueError` where a figure that is a share of right rows is not that of the answers beside it."""
    if not answers or not all(block.right for block in answers):
        raise ValueError("answers: are not there")
    share = float(np.mean([np.mean(block.right) for block in answers]))
    if abs(share - value) > 1e-6:
        raise ValueError(f"answers: {share:.4f} of them are right, and value is {value:.4f}")
