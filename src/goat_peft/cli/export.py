"""`goat export ADAPTER --to lora --calibrate DATA`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..reporting.tables import percent
from .output import console, say

HELP = "Write a plain LoRA that stands in for a GOAT adapter, for engines that serve LoRA alone, and measure what it costs."


class Form(StrEnum):
    """What an adapter can become."""

    lora = "lora"


class Weights(StrEnum):
    """What stands in for the routing weights."""

    regression = "regression"
    mean = "mean"


def export(
    target: Annotated[
        str,
        typer.Argument(help="folder that `goat train` wrote, folder of a saved GOAT adapter, or its name on the hub"),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as evaluation.batch_size=8")
    ] = None,
    to: Annotated[Form, typer.Option("--to", help="what to write")] = Form.lora,
    calibrate: Annotated[
        str, typer.Option("--calibrate", help="train, validation, or a file of rows in the task's columns")
    ] = "train",
    rows: Annotated[
        int, typer.Option("--rows", min=2, help="how many of them, drawn at random; a fifth measures")
    ] = 256,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="rank of the LoRA; at most twice the adapter's, as when not given"),
    ] = None,
    weights: Annotated[
        Weights, typer.Option("--weights", help="for the routing weights: least squares on the rows, or their mean")
    ] = Weights.regression,
    distill: Annotated[
        int, typer.Option("--distill", min=0, help="steps of training towards the routed model's outputs")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="draws the rows and their order")] = 0,
    recipe: Annotated[str | None, typer.Option("--recipe", help="recipe whose task or tests count")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="task to calibrate and score on; may be given several times")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder to write; runs/NAME-lora when not given")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export")] = False,
) -> None:
    """Export, and print loss and score of base, routed and exported model."""
    from ..export import Wishes
    from ..export import export as job

    wishes = Wishes(calibrate, rows, rank, weights.value, distill, seed)
    done = job(target, wishes, recipe, task or [], overrides or [], output, overwrite)
    found = done.result["export_info"]
    names = next(iter(found["models"].values()))["metrics"]
    fitted, held_back = found["rows"]["fit"], found["rows"]["held_back"]
    table = Table(
        "model", "loss", *(name.replace("_", " ") for name in names), "same answers",
    )  # fmt: skip
    say(f"{target}: a LoRA of rank {found['rank']}, from {fitted} rows; loss on {held_back} others")
    for name, own in found["models"].items():
        scores = (percent(value) for value in own["metrics"].values())
        table.add_row(name, f"{own['loss']:.4f}", *scores, percent(found["agreement"][name]))
    console.print(table)
    for name, kept in found["kept"].items():
        said = [f"{percent(share)} % of the gain in {what}" for what, share in kept.items() if share is not None]
        say(
            f"{name}: keeps {' and '.join(said)}"
            if said
            else f"{name}: the routed model gained too little over the base to say what is kept"
        )
    say(f"{done.path}: the adapter, which PEFT loads without this package, and export.json")
