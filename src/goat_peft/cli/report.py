"""`goat report DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import say

HELP = "Draw a comparison: one self-contained HTML page and its pictures."


def report(
    folder: Annotated[Path, typer.Argument(help="folder that `goat compare` wrote")],
    alignment: Annotated[Path | None, typer.Option(help="alignment.json; the folder's own when not given")] = None,
) -> None:
    """Write `report.html` and the PNGs into the folder's `report`."""
    from ..reporting.page import write_report

    page = write_report(folder, alignment)
    say(f"{page}: open it in a browser; it needs no other file and no network")
