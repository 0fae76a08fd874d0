"""The package says that it is typed, and is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "goat_peft"
KERNELS = PACKAGE / "ops" / "kernels.py"  # Triton's language, not Python's


def untyped(path: Path) -> list[str]:
    """Functions of a file that lack the type of an argument or of what they return."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in given if a.annotation is None and a.arg not in {"self", "cls"}]
        if bare or (node.returns is None and not (node.name == "__init__" and len(given) > 1)):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return found


def test_every_function_says_its_types() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert [name for path in PACKAGE.rglob("*.py") if path != KERNELS for name in untyped(path)] == []


@pytest.mark.slow
def test_mypy_has_nothing_to_say() -> None:
    pytest.importorskip("mypy", reason="pip install mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
