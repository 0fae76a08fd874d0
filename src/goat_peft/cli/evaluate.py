"""`goat eval TARGET [--recipe NAME] [--task NAME ... | --harness TASKS] [key=value ...]`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import records
from ..errors import UserError
from .output import complain, console, harness_table, say, score_table

HELP = "Score a run, any PEFT adapter or a bare base model; what is scored is never changed."


def evaluate(
    target: Annotated[
        str, typer.Argument(help="folder that `goat train` wrote, folder of a saved adapter, or a base model")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as evaluation.batch_size=8")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="recipe whose task or tests count")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="task to score on, such as gsm8k; may be given several times")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of figures and predictions; runs/eval-NAME-... when not given")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="score again, replacing what the folder holds")
    ] = False,
    harness: Annotated[
        str | None,
        typer.Option(
            "--harness", metavar="TASKS", help="lm-evaluation-harness tasks to score on, such as arc_easy,piqa"
        ),
    ] = None,
    harness_include: Annotated[
        Path | None, typer.Option("--harness-include", help="folder of your own task files for --harness")
    ] = None,
) -> None:
    """Load, score, print, say where the figures lie."""
    if harness is not None:
        if task:
            raise UserError(f"--task {task[0]}: is not scored beside --harness; give one command for each")
        return _harness(target, harness, harness_include, recipe, overrides or [], output, overwrite)
    if harness_include is not None:
        raise UserError(f"--harness-include {harness_include}: needs --harness TASKS, the names of tasks in it")
    from ..tasks import processes
    from ..training import evaluate as job

    try:
        done = job(target, recipe, task or [], overrides or [], output, overwrite)
    except KeyboardInterrupt:
        complain(f"interrupted; scored rows are kept, continue with: {shlex.join(['goat', *sys.argv[1:]])}")
        sys.exit(130)
    main = processes.is_main()
    processes.close()
    if not main:
        return
    found = done.result["eval_info"]
    title = f"{target}: {found['samples']} rows of {done.result['run_info']['split']}"
    console.print(score_table(title, found["metrics"], found["counts"]))
    for note in found["notes"]:
        say(note)
    if done.findings is None:
        say(f"{done.path}: was scored before, on {done.result['run_info']['created_at']}; --overwrite scores again")
    else:
        say(f"{done.path}: figures, predictions")


def _harness(
    target: str,
    tasks: str,
    include: Path | None,
    recipe: str | None,
    overrides: list[str],
    output: Path | None,
    overwrite: bool,
) -> None:
    """The same with the tasks of the lm-evaluation-harness."""
    from ..training.harness import harness

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"--harness {tasks}: give names of tasks parted by commas, each once, such as arc_easy,piqa")
    done = harness(target, names, include, recipe, overrides, output, overwrite)
    run = done.result["run_info"]
    console.print(harness_table(f"{target}: lm-evaluation-harness", done.rows()))
    file = done.path / records.HARNESS
    again = f": was scored before, on {run['created_at']}; --overwrite scores again" if done.stored else ": figures"
    say(f"{file}{again}")
