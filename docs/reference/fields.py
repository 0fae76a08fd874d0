"""For mkdocs: a table of a dataclass' fields with their help texts, read from the source without importing it.

In a page, `<!-- fields: adapter/config.py GoatConfig -->` becomes the table.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

MARK = re.compile(r"<!-- fields: (\S+) (\w+) -->")


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Put the tables in place of the marks."""
    package = Path(config.docs_dir).parent / "src" / "goat_peft"
    return MARK.sub(lambda mark: _table(package / mark[1], mark[2]), markdown)


def _table(path: Path, name: str) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = [_row(node) for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)]
    return "\n".join(["| field | default | what it is, and a value to start from |", "|---|---|---|", *rows])


def _row(node: ast.AnnAssign) -> str:
    assert isinstance(node.value, ast.Call)
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    metadata = ast.literal_eval(given["metadata"]) if "metadata" in given else {}
    default = ast.unparse(given["default"]) if "default" in given else ""
    text = metadata.get("help", "").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
    return f"| `{ast.unparse(node.target)}` | `{default}` | {text} |"
