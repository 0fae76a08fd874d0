"""Parts of a page that a command writes, between the lines `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_END = "<!-- end -->"
_MARKER = re.compile(r"<!-- (?:(table|picture): (\S+)|end) -->")  # a whole line, from its first character to its last
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")


def parts(page: str) -> list[tuple[str, str]]:
    """The kinds and names of a page's parts, in its order."""
    return [(found[1], found[2]) for _, found in _markers(page) if found[1]]


def insert(page: str, kind: str, name: str, text: str, path: Path) -> str:
    """Replace what stands in the part `kind: name` of a page; raise `UserError` naming the page's `path` unless there is one such part."""
    start = f"<!-- {kind}: {name} -->"
    markers = list(_markers(page))
    here = [index for index, (_, found) in enumerate(markers) if found[0] == start]
    if not here:
        raise UserError(
            f"into={path}: has no line {start}; put it where the {kind} belongs, and a line {_END} below it"
        )
    if len(here) > 1:
        raise UserError(f"into={path}: has the line {start} {len(here)} times; leave one")
    following = markers[here[0] + 1 : here[0] + 2]
    if not following or following[0][1][0] != _END:
        raise UserError(f"into={path}: has no line {_END} after {start}; put one where the {kind} ends")
    body, end = markers[here[0]][0] + len(start), following[0][0]
    return f"{page[:body]}\n\n{text}\n\n{page[end:]}"


def _markers(page: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Place and text of every marker that is a line by itself, outside of fenced code."""
    place, fence = 0, ""
    for line in page.split("\n"):
        edge = _FENCE.match(line)
        if fence:  # ends at a line of as many of the same character, and nothing else
            if edge and edge[1].startswith(fence) and not line[edge.end() :].strip():
                fence = ""
        elif edge:
            fence = edge[1]
        elif found := _MARKER.fullmatch(line):
            yield place, found
        place += len(line) + 1
