"""Runs that a `comparison.json` holds, so that their folders are not needed: what each found and cost, and which of its answers were right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Digest of what makes two runs the same: the figure that counts, and every setting of the recipe but its folder.

    A new key of the recipe would make the runs of all committed files unknown (a test holds one of them): leave it out here while it has the value
    that they ran with.
    """
    return digests.of_value([metric, recipe.model_copy(update={"output_dir": None}).model_dump(mode="json")])


def read_known(files: list[Path], tell: Callable[[str], None] = lambda line: None) -> Archive:
    """The runs of comparisons, given as files or as folders that hold one; of a run in several files the first one's, `tell` hears where figures differ.

    Raises:
        UserError: a file that is no comparison, does not agree with itself, or is older than the runs' `settings`.
    """
    found: Archive = {}
    for given in files:
        path = given / records.COMPARISON if given.is_dir() else given
        try:
            summary = read_summary(path)
        except UserError as error:
            raise UserError(f"known={path}: {str(error).removeprefix(f'file={path}: ')}") from None
        runs = {name: run for name, run, _ in _runs(summary)}
        if not runs:
            raise UserError(f"known={path}: none of its runs says its settings, as files of before; leave it out")
        other = [found[name] for name, run in runs.items() if name in found and found[name].value != run.value]
        if other:
            tell(f"{len(other)} runs of {path} have other figures in {other[0].file}, which was given first and counts")
        found = merged(found, runs)
    return found


def read_own(output: Path) -> Archive:
    """Runs that the comparison in this folder knew from files when it was last summed up; none where there is none, or a damaged one."""
    try:
        return {name: run for name, run, remembered in _runs(read_summary(output / records.COMPARISON)) if remembered}
    except UserError:
        return {}


def merged(first: Archive, second: Archive) -> Archive:
    """The runs of both; of one in both the first's, unless only the second has its answers and the figures agree."""
    found = second | first
    for name in first.keys() & second.keys():
        if first[name].answers is None and first[name].value == second[name].value:
            found[name] = second[name]
    return found


def _runs(summary: Summary) -> Iterator[tuple[str, Known, bool]]:
    """Every run of a file that ended well and says its settings, and whether it was known from another file.

    Raises `UserError` for answers that are damaged, or do not give the run's figure where those of others do.
    """
    places = summary.data["run_info"].get("ran_on", [])
    for task in summary.tasks:
        rows = [(row, run) for row in task["rows"] for run in [*row["sweep"], *row["test"]]]
        found = []
        for row, run in rows:
            if run["value"] is None or run.get("settings") is None or run.get("info") is None:
                continue
            try:
                answers = unpacked(run.get("answers"))
            except ValueError as error:
                raise _damaged(summary, task, row, str(error)) from None
            file = run.get("file") or str(summary.path)
            found.append((row, run, Known(run["value"], run["info"], answers, places, file)))
        shares = any(0 < known.value < 1 and _share(known) == known.value for *_, known in found)
        for row, run, known in found:
            if shares and known.answers is not None and _share(known) != known.value:
                raise _damaged(
                    summary, task, row, f"answers: {_share(known)} of them are right, and value is {known.value}"
                )
            yield run["settings"], known, run.get("file") is not None


def _share(known: Known) -> float | None:
    """Mean over test sets of the share of right answers, as exact as `known.value` where that is what it says; None without answers."""
    if not known.answers or not all(block.right for block in known.answers):
        return None
    share = float(np.mean([np.mean(block.right) for block in known.answers]))
    return known.value if abs(share - known.value) < 1e-6 else share


def _damaged(summary: Summary, task: dict[str, Any], row: dict[str, Any], what: str) -> UserError:
    return UserError(
        f"known={summary.path}: {row['label']} on {task['name']}: {what}; give the file as `goat compare` wrote it"
    )
