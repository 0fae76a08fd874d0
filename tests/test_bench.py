"""`goat bench`: every method measured in one run, rows with their circumstances, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goat_peft.cli import main

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_a_training_step_of_each_method_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    options = [
        "--shape",
        "minilm-l6",
        "--layers",
        "1",
        "--sizes",
        "2x8",
        "--ranks",
        "8",
        "--repeats",
        "2",
        "--warmup",
        "1",
    ]
    for _ in range(2):  # rows are added, never replaced
        assert run("bench", "train-step", *options, "--device", "cpu", "--results", str(file)) == 0
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == ["floor", "lora", "loop", "goat"] * 2
    floor = rows[0]
    for row in rows[:4]:
        assert row["over_floor"] == pytest.approx(row["step_ms"] / floor["step_ms"])
        assert row["waited_ms"] > 0 and row["r"] == 8 and row["layers"] == 1
        assert row["versions"]["torch"] and row["date"] and row["command"] and row["device"]
    assert "x lora" in capsys.readouterr().out


@pytest.mark.slow  # its parts run in tests/ops
def test_decoding(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--shape", "smollm2-135m", "--layers", "1", "--batches", "2", "--methods", "lora,goat"]
    assert run("bench", "decode", *options, "--device", "cpu", "--results", str(file)) == 0
    assert [row["method"] for row in json.loads(file.read_text())] == ["lora", "goat"]


def test_the_picture_comes_from_the_committed_rows(tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    assert run("bench", "plot", "--results", str(RESULTS), "--output", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_rows_says_what_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "plot", "--results", str(tmp_path)) == 2
    assert "has no train_step.json; measure first" in capsys.readouterr().err
