"""What the pages hold: their code blocks, shell lines, links and headings. README.md counts as a page."""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$",
    flags=re.MULTILINE | re.DOTALL,
)
_SHELL = {"", "sh", "bash"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it cannot run, from the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None


@dataclass(frozen=True)
class Command:
    """A line of a shell block, as words; comments are gone, and what a pipe feeds stands alone."""

    page: Path
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page.name}: {shlex.join(self.words)}"


def page_id(page: Path) -> str:
    """A page's name for test ids."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("fence")) + 1, m["language"], m["text"], m["reason"])
        for m in _FENCE.finditer(text)
    ]


def write_files(page: Path, folder: Path) -> None:
    """Write the YAML blocks that begin with a comment such as `# mine.yaml` under that name, as the reader would."""
    for block in blocks(page):
        name = re.match(r"# (\S+\.yaml)$", block.text.partition("\n")[0])
        if block.language == "yaml" and name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[Command]:
    """The shell lines of a page, those continued with a backslash joined."""
    found = []
    for block in blocks(page):
        if block.language not in _SHELL:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:\||&&)\s", line):
                words = shlex.split(part, comments=True)
                if words:
                    found.append(Command(page, words))
    return found


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of each link and picture that stays in the repository; one of both may be empty."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(page))
    return [(path, anchor) for path, anchor in found if path or anchor]


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), flags=re.MULTILINE)
    return {_slug(heading) for heading in headings}


def _slug(heading: str) -> str:
    plain = (
        unicodedata.normalize("NFKD", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)).encode("ascii", "ignore").decode()
    )
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
