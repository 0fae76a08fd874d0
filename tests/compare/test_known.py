"""Runs known from a committed file: the same comparison without their folders, with what is new run beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from goat_peft import records
from goat_peft.cli import main
from goat_peft.compare import compare, load_plan, read_known
from goat_peft.compare.known import packed, unpacked
from goat_peft.errors import UserError
from goat_peft.reporting.evidence import table
from goat_peft.reporting.page import write_report
from goat_peft.reporting.summary import read_summary


def run(plan_file: Path, output: Path, *known: Path) -> tuple[dict[str, Any], list[str]]:
    """Compare with what the files know; return the summary and what was run."""
    told: list[str] = []
    archive = read_known(list(known))
    plan = load_plan(str(plan_file))
    return compare(plan, output, "goat compare", lambda trial, *_: told.append(str(trial)), archive), told


def edited(file: Path, **changes: Any) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def command_ends(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def figures(summary: dict[str, Any]) -> list[Any]:
    """All that a table shows of a comparison, and the answers by row."""
    kept = ("label", "learning_rate", "mean", "sd", "difference", "low", "high", "paired_over", "parameters", "memory")
    return [
        [{name: row[name] for name in kept}, [(t["value"], t["correct"], t["train_time"]) for t in row["test"]]]
        for task in summary["tasks"]
        for row in task["rows"]
    ] + [summary["overall"]]


def test_a_file_stands_for_its_runs_and_one_more_method_is_run_beside_them(plan_file: Path, tmp_path: Path) -> None:
    first, told = run(plan_file, tmp_path / "first")
    assert len(told) == 8
    file = tmp_path / "first.json"
    (tmp_path / "first" / records.COMPARISON).rename(file)

    same, told = run(plan_file, tmp_path / "second", file)
    assert told == [] and figures(same) == figures(first)
    assert same["run_info"]["ran_on"] == first["run_info"]["ran_on"]
    assert not list((tmp_path / "second").rglob(records.RESULT))
    assert {trial["run"] for row in same["tasks"][0]["rows"] for trial in [*row["sweep"], *row["test"]]} == {None}
    assert table(read_summary(tmp_path / "second" / records.COMPARISON)).count("seeds and rows") == 1
    assert write_report(tmp_path / "second", None).is_file()

    methods = yaml.safe_load(plan_file.read_text())["methods"]
    edited(plan_file, methods=[*methods, {"name": "rslora", "learning_rates": [0.001, 0.02]}])
    more, told = run(plan_file, tmp_path / "third", file)
    assert len(told) == 4 and all(line.startswith("rslora") for line in told)
    assert figures(more)[:2] == figures(first)[:2]
    assert more["tasks"][0]["rows"][2]["paired_over"] == "seeds and examples"  # row by row with runs of the file
    again, _ = run(plan_file, tmp_path / "fourth", tmp_path / "third" / records.COMPARISON)
    assert figures(again) == figures(more)


def test_other_settings_or_another_figure_are_no_known_runs(plan_file: Path, tmp_path: Path) -> None:
    edited(plan_file, methods=[{"name": "molora", "learning_rates": [0.02]}], baseline="molora", seeds=[0])
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    edited(plan_file, overrides=["training.max_steps=3"])
    assert len(run(plan_file, tmp_path / "steps", file)[1]) == 1
    edited(plan_file, overrides=[], common={"r": 16})
    assert len(run(plan_file, tmp_path / "rank", file)[1]) == 1
    edited(plan_file, common={"r": 8}, metric="f1")
    assert len(run(plan_file, tmp_path / "figure", file)[1]) == 1
    edited(plan_file, metric="accuracy")
    assert run(plan_file, tmp_path / "none", file)[1] == []


def test_failed_runs_of_a_file_are_tried_again(plan_file: Path, tmp_path: Path) -> None:
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    data = json.loads(file.read_text())
    trial = data["tasks"][0]["rows"][1]["sweep"][0]  # not the rate that was chosen, or the file would not hold together
    row = data["tasks"][0]["rows"][1]
    if row["learning_rate"] == trial["learning_rate"]:
        trial = row["sweep"][1]
    trial |= {"value": None, "error": "diverged"}
    file.write_text(json.dumps(data))
    assert len(run(plan_file, tmp_path / "second", file)[1]) == 1


def test_the_command_takes_files_and_says_so(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(plan_file, methods=[{"name": "molora", "learning_rates": [0.02]}], baseline="molora")
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    arguments = ["compare", str(plan_file), "--output", str(tmp_path / "second"), "--known", str(file)]
    assert command_ends(*arguments, "--dry-run") == 0
    assert "2 of 2" in capsys.readouterr().out
    assert command_ends(*arguments) == 0
    command = records.read_json(tmp_path / "second" / records.COMPARISON)["run_info"]["command"]
    assert command.endswith(f"--known {file}")
    file.write_text("{}")
    assert command_ends(*arguments) != 0
    assert f"file={file}: is no comparison" in capsys.readouterr().err


def test_files_whose_plan_is_not_known_any_more_are_one_line(plan_file: Path, tmp_path: Path) -> None:
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    data = json.loads(file.read_text())
    data["run_info"]["plan"]["recipes"][0]["recipe"] = "gone.yaml"
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"^known=.*comparison\.json: its runs cannot be read again \(.*gone\.yaml"):
        read_known([file])


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 250])
def test_answers_are_kept_bit_by_bit(rows: int) -> None:
    answers = [[bool((row * 7 + start) % 3) for row in range(rows)] for start in range(2)]
    blocks = packed(answers)
    assert blocks is not None and unpacked(json.loads(json.dumps(blocks))) == answers
    assert len(blocks[0]["right"]) <= 4 * (-(-rows // 8) // 3 + 1)
    with pytest.raises(ValueError, match="do not hold"):
        unpacked([blocks[0] | {"rows": rows + 8}])
    assert packed(None) is None and unpacked(None) is None
