"""`goat eval TARGET [--recipe NAME] [--task NAME ...] [key=value ...]`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .output import complain, console, say, score_table

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
) -> None:
    """Load, score, print, say where the figures lie."""
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
