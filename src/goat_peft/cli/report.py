"""`goat report DIR` and `goat report FILE.json ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .output import say

HELP = "Draw a comparison: one HTML page from its folder, Markdown tables from copies of its comparison.json."


def report(
    sources: Annotated[
        list[Path], typer.Argument(help="the folder that `goat compare` wrote, or copies of its comparison.json")
    ],
    alignment: Annotated[
        Path | None, typer.Option(help="alignment.json for a folder; the folder's own when not given")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Markdown page (.md) to write from files, a picture beside it")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="page whose lines between `<!-- table: NAME -->` and `<!-- end -->` are renewed, NAME.json each"
        ),
    ] = None,
) -> None:
    """Write `report.html` and PNGs into a folder's `report`; or print, write or renew the tables of files."""
    folders = [source for source in sources if source.is_dir()]
    if folders:
        _page(sources, folders[0], alignment, output or into)
        return
    if alignment is not None:
        raise UserError(f"alignment={alignment}: belongs to the page of a folder; give the folder, or leave it out")
    if output is not None and into is not None:
        raise UserError(f"output={output}: and into={into} are two places for the tables; give one")
    from ..reporting import tabled

    summaries = tabled.read_all(sources)
    if into is not None:
        written = tabled.write_into(summaries, into)
    elif output is not None:
        written = tabled.write(summaries, output)
    else:
        say(tabled.as_text(summaries))
        return
    for path in written:
        say(str(path))


def _page(sources: list[Path], folder: Path, alignment: Path | None, markdown: Path | None) -> None:
    """The HTML page of one folder."""
    from ..reporting.page import write_report

    if len(sources) > 1:
        raise UserError(f"sources={folder}: is a folder, which is drawn alone; give one folder, or files only")
    if markdown is not None:
        raise UserError(f"output={markdown}: tables are written from files; give {folder}/comparison.json")
    page = write_report(folder, alignment)
    say(f"{page}: open it in a browser; it needs no other file and no network")
