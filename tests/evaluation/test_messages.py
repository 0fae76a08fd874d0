"""What goes wrong with templates and files is said in one line, with the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.tasks import bind


def test_braces_without_quotes_are_explained(generate: dict) -> None:
    recipes.apply_override(generate, "task.prompt={nope}")
    with pytest.raises(UserError) as error:
        recipes.check(generate)
    assert str(error.value) == ("task.prompt={nope}: is a mapping in YAML; a text in braces needs quotes, '\"{nope}\"'")


@pytest.mark.parametrize("text", ["", "instruction,output,answer\n"])
def test_a_file_without_rows_says_so(generate: dict, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    generate["task"]["data"]["test"] = {"path": str(tmp_path / "rows.csv")}
    with pytest.raises(UserError, match=r"task.data.test.path=.*rows.csv: (holds no rows|cannot be read)"):
        bind(recipes.check(generate).task).load("test")
