"""`goat train RECIPE [key=value ...]`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from ..recipes import load
from ..reporting.tables import count
from .output import complain, final_scores, say

HELP = "Train a recipe, score it and write the run folder."


def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or name of a shipped recipe (see `goat recipes list`)")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as method.r=16")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the last complete checkpoint, or with the scoring")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run left")] = False,
) -> None:
    """Train, and say where the run lies."""
    checked = load(recipe, overrides or [])
    # Imported here: listing recipes or a typing mistake should not wait for torch.
    from ..tasks import processes
    from ..training import Interrupted
    from ..training import train as run_recipe

    again = shlex.join(["goat", "train", recipe, *(overrides or []), "--resume"])
    try:
        run = run_recipe(checked, resume=resume, overwrite=overwrite)
    except Interrupted as stop:
        complain(f"{stop}; the checkpoint is saved, continue with: {again}")
        sys.exit(130)
    except KeyboardInterrupt:
        complain(f"interrupted; if a checkpoint was saved, continue with: {again}")
        sys.exit(130)
    main = processes.is_main()
    processes.close()
    if not main:
        return
    info = run.result["train_info"]
    say(final_scores(info["metrics"][-1]))
    for note in run.result["run_info"]["notes"]:
        say(note)
    rows = info.get("rows", {})
    if rows.get("cut") or rows.get("dropped"):
        say(
            f"task.max_length={checked.task.max_length}: {rows['cut']} of {rows['train']} training rows were cut, "  # type: ignore[attr-defined]
            f"{rows['dropped']} more were dropped because their prompt alone fills it"
        )
    say(
        f"{count(info['num_trainable_params'])} of {count(info['num_total_params'])} parameters trained "
        f"in {info['train_time']:.0f} s; run folder: {run.path}"
    )
