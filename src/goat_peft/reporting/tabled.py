"""`goat report FILE.json ...`: tables of committed comparisons on the screen, in a file, or inside a page."""

from __future__ import annotations

from pathlib import Path

from .. import records
from ..errors import UserError
from . import suite
from .evidence import table
from .inserted import insert, parts
from .summary import Summary, read_summary


def read_all(files: list[Path]) -> list[Summary]:
    """Read comparisons; raise `UserError` for two of one name, which could not be told apart in a page."""
    summaries = [read_summary(file) for file in files]
    names = [summary.name for summary in summaries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"file={twice}.json: is given twice; give each file a name of its own")
    return summaries


def as_text(summaries: list[Summary], place: Path | None = None) -> str:
    """The tables one below the other; links are relative to the folder `place`."""
    return "\n\n".join(table(summary, place) for summary in summaries)


def write(summaries: list[Summary], path: Path) -> list[Path]:
    """Write the tables as a page with its pictures beside it; return all files."""
    pictures = _draw(summaries, path.parent)
    shown = [_image(group) for group in suite.groups(summaries)]
    records.write_text(path, "\n\n".join([as_text(summaries, path.parent), *shown]) + "\n")
    return [path, *pictures]


def filled(page: str, summaries: list[Summary], path: Path) -> str:
    """The text `page` of the file `path` with every table, and every picture that it has a part for, put in.

    Raises `UserError` where the page has no part for a table.
    """
    for summary in summaries:
        page = insert(page, "table", summary.name, table(summary, path.parent), path)
    for group in suite.groups(summaries):
        if ("picture", group[0].name) in parts(page):
            page = insert(page, "picture", group[0].name, _image(group), path)
    return page


def write_into(summaries: list[Summary], path: Path) -> list[Path]:
    """Renew the parts of a page, and the pictures beside it; return all files."""
    if not path.is_file():
        raise UserError(f"into={path}: no such page; give one with a line <!-- table: {summaries[0].name} -->")
    text = filled(path.read_text(encoding="utf-8"), summaries, path)
    pictures = _draw(summaries, path.parent)
    records.write_text(path, text)
    return [path, *pictures]


def _draw(summaries: list[Summary], folder: Path) -> list[Path]:
    """One picture for each group of comparisons, called like the group's first file."""
    paths = []
    for group in suite.groups(summaries):
        paths.append(folder / f"{group[0].name}.png")
        suite.draw(group, paths[-1])
    return paths


def _image(group: list[Summary]) -> str:
    return f"![{suite.alt(group)}]({group[0].name}.png)"
