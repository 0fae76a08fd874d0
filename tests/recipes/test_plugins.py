"""Methods of packages that a user installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

METHOD = """
from typing import Literal
from goat_peft.methods import Method, register
from goat_peft.recipes import MethodOptions

class Options(MethodOptions):
    name: Literal["frozen-but-head"] = "frozen-but-head"

register(Method(name="frozen-but-head", description="d", source="s", options=Options, build=lambda model, options, task: model, learning_rate=1e-3))
"""
LOOK_UP = """
from goat_peft.errors import UserError
from goat_peft import recipes
try:
    print(recipes.load("demo-reviews", ["method={name: frozen-but-head}"]).method.name)
except UserError as error:
    print("error:", error)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (METHOD, "frozen-but-head"),
        (
            "import nothing_like_it",
            "error: plug-in mine = mine_methods: cannot be imported (No module named 'nothing_like_it')",
        ),
    ],
)
def test_an_installed_plug_in_is_known_without_being_imported(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "mine_methods.py").write_text(source)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[goat_peft]\nmine = mine_methods\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP],
        check=False,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().startswith(said), done.stderr[-500:]
