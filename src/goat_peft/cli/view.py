"""`goat view RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from .. import records
from .output import say

HELP = "Write a page that shows which expert reads what, and how training went; it opens in any browser, offline."


def view(
    run: Annotated[Path, typer.Argument(help="folder that `goat train` wrote")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as evaluation.split=validation")
    ] = None,
    rows: Annotated[int, typer.Option("--texts", min=0, help="rows of the evaluation split, from the first")] = 8,
    texts: Annotated[list[str] | None, typer.Option("--text", help="a text of your own; may be given again")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="longest text in tokens; the rest is cut")] = 128,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", help="pattern of module names, such as '*query*'; may be given again"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help=f"file to write; RUN/{records.VIEW} when not given")] = None,
) -> None:
    """Collect, write, and say where the page lies."""
    from ..training.callbacks import bar
    from ..view import Wishes, view_run

    target = output or run / records.VIEW
    with bar() as progress:
        shown: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = progress.add_task(what, total=total, note="")
            progress.update(shown[what], completed=done + 1)

        wishes = Wishes(rows, tuple(texts or ()), tokens, tuple(layers or ()))
        data = view_run(run, overrides or [], wishes, target, watch)
    size = target.stat().st_size / 1e6
    if data["experts"] is None:
        say(f"{target}: curves only ({size:.1f} MB); {data['run']['method']} has no routed GOAT experts")
        return
    say(f"{target}: {len(data['texts'])} texts in {len(data['layers'])} layers ({size:.1f} MB); open it in a browser")
    if data["left_out"]:
        say(f"{data['left_out']} more did not fit; choose fewer --layers or --tokens")
