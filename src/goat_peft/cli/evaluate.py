"""`goat eval RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import console, score_table

HELP = "Score a run's adapter or model again; nothing in the run folder changes."


def evaluate(
    run: Annotated[Path, typer.Argument(help="folder that `goat train` wrote")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as evaluation.split=validation")
    ] = None,
) -> None:
    """Load, score, print."""
    from ..training import evaluate_run

    recipe, scores = evaluate_run(run, overrides or [])
    title = f"{run}: {len(scores.predictions)} rows of {recipe.evaluation.split}"
    console.print(score_table(title, scores.metrics, scores.counts))
