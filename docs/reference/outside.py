"""For mkdocs: links of a page that leave `docs/` lead to a copy of the file (or a list of the folder) inside the site.

The pages are read in the repository as well, where `../results/demo.json` is the file itself.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?(\))")
SHOWN = {".png", ".json", ".html", ".svg"}  # a browser shows these as they are; anything else becomes text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a copy of each file outside that a page links to."""
    docs = Path(config.docs_dir)
    added = set()
    for file in list(files.documentation_pages()):
        for _, target, _, _ in LINK.findall(file.content_string):
            place = _outside(file.src_uri, target)
            if place is None or place in added:
                continue
            added.add(place)
            path = docs.parent / place
            if path.exists():  # else the link stays as it is, and mkdocs says so
                files.append(File.generated(config, _copy(docs.parent, place), content=_content(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Point those links to the copies."""
    root = Path(config.docs_dir).parent

    def to_copy(match: re.Match[str]) -> str:
        place = _outside(page.file.src_uri, match[2])
        if place is None or not (root / place).exists():
            return match[0]
        copy = posixpath.relpath(_copy(root, place), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{copy}{match[4]}"

    return LINK.sub(to_copy, markdown)


def _outside(page: str, target: str) -> str | None:
    """The target's path in the repository, or None for one inside docs/."""
    place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if place.startswith("docs/") else place


def _copy(root: Path, place: str) -> str:
    path = root / place
    if path.is_dir():
        return f"repository/{place}/files.txt"
    return f"repository/{place}" if path.suffix in SHOWN else f"repository/{place}.txt"


def _content(path: Path) -> bytes:
    if path.is_dir():
        return "".join(
            f"{entry.name}\n" for entry in sorted(path.iterdir()) if not entry.name.startswith((".", "__"))
        ).encode()
    return path.read_bytes()
