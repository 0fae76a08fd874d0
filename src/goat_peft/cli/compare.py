"""`goat compare PLAN [key=value ...]`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..reporting.tables import count, percent
from .output import complain, console, say

HELP = "Compare methods: learning rates chosen on validation, the choice scored on test over seeds; runs that are finished are kept."


def compare(
    plan: Annotated[
        str, typer.Argument(help="YAML file, or a shipped plan (ablations, demo, evidence, evidence-fixed)")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as parallel=2")] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the comparison; runs/compare-NAME when not given")
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="a comparison.json whose runs are not run again; give it once for each file"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say how many runs there are, and run none")] = False,
) -> None:
    """Run what is missing, print the table; exit 1 when a method has no figure on a task."""
    from .. import compare as job
    from ..training import Interrupted

    checked = job.load_plan(plan, overrides or [])
    folder = output or Path(f"runs/compare-{checked.name}")
    archive = job.read_known(known or [], say)
    if dry_run:
        console.print(_outlook(job.outlook(checked, folder, archive), str(folder)))
        return
    place = ["--output", str(output)] if output else []
    place += [word for file in known or [] for word in ("--known", str(file))]
    command = shlex.join(["goat", "compare", plan, *(overrides or []), *place])

    def tell(trial: Any, done: int, total: int, again: bool) -> None:
        found = trial.outcome()
        said = f"failed: {found.error}" if found.value is None else f"{trial.metric} {percent(found.value)}"
        say(f"[{done}/{total}] {trial}: {said}{'; once more at the end, with a device to itself' if again else ''}")

    try:
        summary = job.compare(checked, folder, command, tell, archive)
    except (Interrupted, KeyboardInterrupt):
        complain(f"interrupted; finished runs are kept, continue with: {command}")
        sys.exit(130)
    for task in summary["tasks"]:
        console.print(_table(task, checked.baseline))
    if len(summary["tasks"]) > 1:
        console.print(_overall(summary["overall"], checked.baseline))
    seeds = len(checked.seeds or checked.tuning_seeds)
    if seeds == 1:
        say("one seed: intervals speak of test rows alone, and nothing of how runs differ")
    say(f"{folder / 'comparison.json'} holds the figures; `goat report {folder}` draws them")
    sweep = [trial["value"] for task in summary["tasks"] for row in task["rows"] for trial in row["sweep"]]
    if None in sweep:
        say(f"{sweep.count(None)} of {len(sweep)} runs that choose a rate failed; their rates are out")
    missing = [
        f"{row['label']} on {task['name']}" for task in summary["tasks"] for row in task["rows"] if row["mean"] is None
    ]
    if missing:
        complain(f"a run failed of {', '.join(missing)}; run the same command again to try it once more")
        raise typer.Exit(1)


def _outlook(tasks: list[Any], folder: str) -> Table:
    """Build the table of runs, finished and all, with their sums."""
    known = any(task.known for task in tasks)
    heads = [
        "task",
        "methods",
        "on validation, to choose rates",
        "on test",
        *(["of these known from files"] if known else []),
    ]
    table = Table(*heads, title=f"runs finished in {folder}{' or known' if known else ''}")
    for task in tasks:
        cells = [task.task, str(task.methods), f"{task.tuned} of {task.tuning}", f"{task.scored} of {task.final}"]
        table.add_row(*cells, *([str(task.known)] if known else []))
    table.add_section()
    done, runs = sum(task.tuned + task.scored for task in tasks), sum(task.tuning + task.final for task in tasks)
    table.add_row("all", "", "", f"{done} of {runs} runs", *([str(sum(task.known for task in tasks))] if known else []))
    return table


def _table(task: dict[str, Any], baseline: str) -> Table:
    """Build one task's table, the best first."""
    table = Table(
        "rank",
        "method",
        "lr",
        task["metric"],
        "sd",
        f"less {baseline} (95 % interval)",
        "trained",
        "seconds",
        title=f"{task['name']}, {task['split']}",
    )
    for row in sorted(task["rows"], key=lambda row: (row["rank"] is None, row["rank"])):
        if row["mean"] is None:
            table.add_row("", row["label"], "", "failed", "", "", "", "")
            continue
        table.add_row(
            f"{row['rank']:g}",
            row["label"],
            f"{row['learning_rate']:g}",
            percent(row["mean"]),
            "" if row["sd"] is None else percent(row["sd"]),
            _gap(row),
            count(row["parameters"]),
            f"{row['train_time']:.0f}",
        )
    return table


def _overall(rows: list[dict[str, Any]], baseline: str) -> Table:
    """The table over all tasks, the best first."""
    table = Table("method", "mean", "mean rank", f"less {baseline} (95 % interval)", title="all tasks")
    for row in sorted(rows, key=lambda row: (row["mean"] is None, row["mean"] and -row["mean"])):
        if row["mean"] is None:
            table.add_row(row["label"], "missing on a task", "", "")
        else:
            table.add_row(row["label"], percent(row["mean"]), f"{row['mean_rank']:.2f}", _gap(row))
    return table


def _gap(row: dict[str, Any]) -> str:
    """A difference in points with its interval; empty where there is none."""
    if row["difference"] is None:
        return ""
    interval = "" if row["low"] is None else f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"{100 * row['difference']:+.1f}{interval}"
