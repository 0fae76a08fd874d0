"""The method page: every equation is followed by code, and every function and test it names exists in the file it links to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "method.md"
NAMED = re.compile(r"\[([\w/]+\.py): ([\w., ]+)\]\(\.\./([^)]+)\)")


def names_in(path: Path) -> set[str]:
    """Functions and classes of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


LINKS = NAMED.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "names", "place"), LINKS, ids=[f"{file}-{names[:30]}" for file, names, _ in LINKS])
def test_every_function_named_is_in_the_file(file: str, names: str, place: str) -> None:
    assert place.endswith(f"/{file}")
    missing = set(names.split(", ")) - names_in(ROOT / place)
    assert not missing, f"{place} has no {', '.join(missing)}"


def test_every_equation_has_code_and_a_test() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    with_equation = [section for section in sections if "```text" in section]
    assert len(with_equation) >= 8
    for section in with_equation:
        places = [place for _, _, place in NAMED.findall(section)]
        assert any(place.startswith("src/") for place in places), section[:60]
        assert any(place.startswith("tests/") for place in places), section[:60]
