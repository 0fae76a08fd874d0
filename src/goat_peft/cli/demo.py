"""`goat demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..reporting.tables import count, percent
from .output import console, say

HELP = "Fine-tune a real model on real reviews with GOAT, LoRA and full fine-tuning, and compare them."


def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as task.data.cut.train=200")
    ] = None,
    output: Annotated[Path, typer.Option(help="folder of the three runs and the picture")] = Path("runs/demo"),
) -> None:
    """Run the three, print the table, draw the picture."""
    from .. import demo as job

    clock = time.perf_counter()
    recipe = job.recipe_for("goat", output, overrides or [])
    say(f"{recipe.model.name} on {recipe.task.data.train.path}")  # type: ignore[attr-defined]
    found = job.run(
        output, overrides or [], lambda row: say(f"{row.method}: {percent(row.trained)} % in {row.seconds:.0f} s")
    )
    table = Table("method", "trained parameters", "untrained", "trained", "95 % interval", "seconds")
    for row in found.rows:
        table.add_row(
            row.method,
            count(row.parameters),
            percent(row.untrained),
            percent(row.trained),
            f"{percent(row.low)} to {percent(row.high)}",
            f"{row.seconds:.0f}",
        )
    console.print(table)
    say(f"Always saying the most frequent label would give {percent(found.majority)}.")
    say("Test accuracy in %. Intervals are for one seed and these test reviews; overlapping ones do not rank methods.")
    say(f"{output / 'demo.png'} shows accuracies, curves and experts; whole demo: {time.perf_counter() - clock:.0f} s")
