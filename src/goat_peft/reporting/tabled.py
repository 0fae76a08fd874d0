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
    """Write the tables as a page with its pictures beside it; return all files.

    Raises `UserError` for a path that is no Markdown file, or where a source would be written over.
    """
    if path.suffix != ".md" or path.is_dir():
        raise UserError(f"output={path}: is no Markdown file; give a name that ends in .md")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"output={path}: {above} is a file, in which no page can be; give a path in a folder")
    groups = {group[0].name: group for group in suite.groups(summaries)}
    pictures = _places(summaries, path, list(groups), "output")
    shown = [_image(group, name) for name, group in groups.items()]
    text = "\n\n".join([as_text(summaries, path.parent), *shown]) + "\n"
    return _finish(path, text, [(groups[name], picture) for name, picture in pictures.items()])


def filled(page: str, summaries: list[Summary], path: Path) -> str:
    """The text `page` of the file `path` with every table, and every picture that it has a part for, put in.

    Raises `UserError` where the page has no part for a table, or has a part twice.
    """
    for summary in summaries:
        page = insert(page, "table", summary.name, table(summary, path.parent), path)
    for name, group in _pictured(page, summaries).items():
        for marker in _marked(page, group):
            page = insert(page, "picture", marker, _image(group, name), path)
    return page


def write_into(summaries: list[Summary], path: Path) -> list[Path]:
    """Renew the parts of a page, and the pictures that it shows; return all files.

    Raises `UserError` for a page that cannot be read or lacks a part, or where a source would be written over.
    """
    if not path.is_file():
        raise UserError(f"into={path}: no such page; give one with a line <!-- table: {summaries[0].name} -->")
    try:
        page = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"into={path}: is no text in UTF-8; give a Markdown page") from None
    groups = _pictured(page, summaries)
    pictures = _places(summaries, path, list(groups), "into")
    text = filled(page, summaries, path)
    return _finish(path, text, [(groups[name], picture) for name, picture in pictures.items()])


def _pictured(page: str, summaries: list[Summary]) -> dict[str, list[Summary]]:
    """The groups that a page has a part for, by what their picture is called: the first of the group's names that has one."""
    return {_marked(page, group)[0]: group for group in suite.groups(summaries) if _marked(page, group)}


def _marked(page: str, group: list[Summary]) -> list[str]:
    """The names of a group that stand in the page's markers of pictures."""
    return [summary.name for summary in group if ("picture", summary.name) in parts(page)]


def _places(summaries: list[Summary], page: Path, names: list[str], field: str) -> dict[str, Path]:
    """The pictures' paths by name; raise `UserError` if one of them, or the page, is a file that the tables are read from."""
    pictures = {name: page.parent / f"{name}.png" for name in names}
    for path in [page, *pictures.values()]:
        if any(path.exists() and path.samefile(summary.path) for summary in summaries):
            raise UserError(
                f"{field}={page}: would write over {path}, which the tables are read from; give another page"
            )
    return pictures


def _finish(path: Path, text: str, pictures: list[tuple[list[Summary], Path]]) -> list[Path]:
    """Draw the pictures and write the page, in this order: no page shows a picture that is not there."""
    for group, picture in pictures:
        suite.draw(group, picture)
    records.write_text(path, text)
    return [path, *(picture for _, picture in pictures)]


def _image(group: list[Summary], name: str) -> str:
    return f"![{suite.alt(group)}]({name}.png)"
