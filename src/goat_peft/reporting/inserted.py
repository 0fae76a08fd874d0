"""Parts of a page that a command writes, between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError

_END = "<!-- end -->"
_START = re.compile(r"^<!-- (table|picture): (\S+) -->$", flags=re.MULTILINE)


def parts(page: str) -> list[tuple[str, str]]:
    """The kinds and names of a page's parts, in its order."""
    return [(found[1], found[2]) for found in _START.finditer(page)]


def insert(page: str, kind: str, name: str, text: str, path: Path) -> str:
    """Replace what stands in the part `kind: name` of a page; raise `UserError` naming the page's `path` where there is no such part."""
    start = f"<!-- {kind}: {name} -->"
    here = page.find(f"{start}\n")
    if here < 0:
        raise UserError(
            f"into={path}: has no line {start}; put it where the {kind} belongs, and a line {_END} below it"
        )
    body = here + len(start) + 1
    end, following = page.find(_END, body), _START.search(page, body)
    if end < 0 or (following is not None and following.start() < end):
        raise UserError(f"into={path}: has no line {_END} after {start}; put one where the {kind} ends")
    return f"{page[:body]}\n{text}\n\n{page[end:]}"
