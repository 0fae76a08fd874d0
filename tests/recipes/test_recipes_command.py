"""`goat recipes`: families, task files, and what is said of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from goat_peft import recipes
from goat_peft.cli import main


def goat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["recipes", *arguments])
    return int(stop.value.code or 0)


def test_list_shows_one_family_with_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("list", "--family", "commonsense") == 0
    said = capsys.readouterr().out
    assert "commonsense-smollm2" in said and "meta-llama/Llama-2-7b-hf" in said and "cola" not in said
    assert goat("list", "--family", "maths") == 2
    assert "--family=maths: no such family; did you mean math?" in capsys.readouterr().err


def test_tasks_lists_every_file_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("tasks") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in recipes.task_files())
    assert "1,319" in said and "MIT" in said
    assert goat("tasks", "gsm8k") == 0
    said = capsys.readouterr().out
    assert yaml.safe_load(said)["data"]["test"]["rows"] == 1319
    assert "# gsm8k, version 1: GSM8K, Cobbe et al. 2021\n#   licence: MIT; size: 8,792 questions" in said
    assert goat("tasks", "gsm9k") == 2
    assert "did you mean gsm8k" in capsys.readouterr().err


def test_show_says_where_training_and_test_rows_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("show", "math-smollm2") == 0
    said = capsys.readouterr().out
    assert "#   train: meta-math/MetaMathQA (train), 395,000 rows" in said
    assert "#   test: openai/gsm8k (main test), 1,319 rows" in said
    assert "openai/gsm8k (main train)" not in said  # GSM8K is a test here: its training rows are not used
    assert goat("show", "math-smollm2", "--full") == 0
    file = tmp_path / "full.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert recipes.load(str(file)) == recipes.load("math-smollm2")


def test_check_covers_the_task_files_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("check") == 0
    count = len(recipes.shipped()) + len(recipes.task_files())
    assert f"{count} of {count} recipes and task files hold" in capsys.readouterr().out


def test_show_says_each_source_s_revision_or_that_none_is_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("show", "math-smollm2", "task.data.train.revision=abc123") == 0
    said = capsys.readouterr().out
    assert "#   train: meta-math/MetaMathQA (train), 395,000 rows, revision abc123\n" in said
    assert "#   test: openai/gsm8k (main test), 1,319 rows, no revision pinned\n" in said
