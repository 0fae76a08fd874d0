"""The page: data and assets in one HTML file that loads nothing else and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from .. import records
from .collect import Wishes, collect
from .opening import Watch

SCRIPTS = (
    "dom",
    "experts",
    "tokens",
    "load",
    "chart",
    "weight",
    "curves",
    "main",
)  # in the order in which they build on each other


def view_run(run: Path, overrides: list[str], wishes: Wishes, output: Path, watch: Watch) -> dict[str, Any]:
    """Write the page of `run` to `output`; return the data it holds.

    Raises `UserError` for what `collect.collect` cannot show.
    """
    data = collect(run, overrides, wishes, watch)
    records.write_text(output, render(data))
    return data


def render(data: dict[str, Any]) -> str:
    """The whole page as text.

    A policy inside it allows its own script and style, known by their digests, and pictures that are part of it; nothing from elsewhere is loaded and no
    other script runs, whatever texts the data holds.
    """
    style = _asset("page.css")
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:"
    page = _asset("page.html")
    for mark, text in {
        "{{policy}}": escape(policy),
        "{{title}}": escape(f"{data['run']['name']}: experts of a run"),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": embed(data),  # last: nothing that the data holds is taken for a mark
    }.items():
        page = page.replace(mark, text, 1)
    return page


def embed(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>` or `&`, and no line separators that old parsers end a line at."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
