"""Runs known from a committed file: the same comparison without their folders, with what is new run beside them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from goat_peft import records
from goat_peft.cli import main
from goat_peft.compare import compare, load_plan, outlook, read_known
from goat_peft.compare.answers import Answers, packed, unpacked
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
        [{name: row[name] for name in kept}, [(t["value"], t["answers"], t["info"]) for t in row["test"]]]
        for task in summary["tasks"]
        for row in task["rows"]
    ] + [summary["overall"]]


@pytest.fixture
def single(plan_file: Path) -> Path:
    """One method at one rate: two runs, on test."""
    edited(plan_file, methods=[{"name": "molora", "learning_rates": [0.02]}], baseline="molora")
    return plan_file


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


def test_other_settings_or_another_figure_are_no_known_runs(single: Path, tmp_path: Path) -> None:
    edited(single, seeds=[0])
    run(single, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    for change in ({"overrides": ["training.max_steps=3"]}, {"common": {"r": 16}}, {"metric": "f1"}):
        plan = yaml.safe_load(single.read_text())
        edited(single, **change)
        with pytest.raises(UserError, match="^known: none of its 1 runs is in this plan"):
            run(single, tmp_path / "other", file)
        single.write_text(yaml.safe_dump(plan))
    assert run(single, tmp_path / "same", file)[1] == []
    # The recipe's own file changes after the runs: they are no longer this plan's, whatever the plan says.
    recipe = Path(yaml.safe_load(single.read_text())["recipes"][0])
    recipe.write_text(recipe.read_text().replace("max_steps: 4", "max_steps: 2"))
    with pytest.raises(UserError, match="^known: none of its 1 runs"):
        run(single, tmp_path / "changed", file)


def test_failed_runs_of_a_file_are_tried_again(plan_file: Path, tmp_path: Path) -> None:
    edited(plan_file, methods=[{"name": "molora", "learning_rates": [0.001, 0.02]}], baseline="molora", seeds=[0])
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    data = json.loads(file.read_text())
    row = data["tasks"][0]["rows"][0]
    trial = next(trial for trial in row["sweep"] if trial["learning_rate"] != row["learning_rate"])
    trial |= {"value": None, "error": "diverged"}
    file.write_text(json.dumps(data))
    assert len(run(plan_file, tmp_path / "second", file)[1]) == 1


def test_two_machines_share_a_plan_and_what_they_knew_stays_known(plan_file: Path, tmp_path: Path) -> None:
    methods = [{"name": name, "learning_rates": [0.02]} for name in ("lora", "molora")]
    edited(plan_file, methods=methods, seeds=[0])
    whole, _ = run(plan_file, tmp_path / "whole")
    files = []
    for method in methods:
        edited(plan_file, methods=[method], baseline=method["name"])
        run(plan_file, tmp_path / method["name"])
        files.append(tmp_path / method["name"] / records.COMPARISON)
    edited(plan_file, methods=methods, baseline="lora")
    both, told = run(plan_file, tmp_path / "both", files[0].parent, files[1])  # a folder will do as well
    assert told == []
    for mine, theirs in zip(both["tasks"][0]["rows"], whole["tasks"][0]["rows"], strict=True):
        assert [mine[name] for name in ("mean", "low", "high")] == [theirs[name] for name in ("mean", "low", "high")]
    named = {row["label"]: {t["file"] for t in [*row["sweep"], *row["test"]]} for row in both["tasks"][0]["rows"]}
    assert named == {"lora": {str(files[0])}, "molora": {str(files[1])}}
    # The files are not named again: the folder's own comparison holds their runs, and says where they came from.
    again, told = run(plan_file, tmp_path / "both")
    assert told == [] and figures(again) == figures(both)
    assert again["tasks"][0]["rows"][0]["test"][0]["file"] == str(files[0])


def test_a_run_that_chose_a_rate_may_come_to_rank(plan_file: Path, tmp_path: Path) -> None:
    edited(plan_file, seeds=[0])
    run(plan_file, tmp_path / "first")
    edited(plan_file, seeds=[], tuning_seeds=[0])
    found, told = run(plan_file, tmp_path / "second", tmp_path / "first" / records.COMPARISON)
    row = found["tasks"][0]["rows"][1]
    assert told == [] and row["parameters"] > 0 and row["train_time"] > 0
    assert row["paired_over"] == "examples" and row["low"] <= row["difference"] <= row["high"]


def test_a_folder_comes_before_a_file_and_answers_before_none(single: Path, tmp_path: Path) -> None:
    run(single, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    found, told = run(single, tmp_path / "first", file)
    assert told == [] and {t["file"] for t in found["tasks"][0]["rows"][0]["test"]} == {None}
    data = json.loads(file.read_text())
    bare = tmp_path / "bare.json"
    for trial in data["tasks"][0]["rows"][0]["test"]:
        trial["answers"] = None
    bare.write_text(json.dumps(data))
    for order in ([file, bare], [bare, file]):
        assert all(known.answers for known in read_known(order).values())
    data["tasks"][0]["rows"][0] |= {"mean": 0.25, "sd": 0.0}
    for trial in data["tasks"][0]["rows"][0]["test"]:
        trial["value"] = 0.25
    data["overall"][0]["mean"] = 0.25
    bare.write_text(json.dumps(data))
    said: list[str] = []
    assert {known.value for known in read_known([bare, file], said.append).values()} == {0.25}  # the first given counts
    assert said == [f"2 runs of {file} have other figures in {bare}, which was given first and counts"]
    assert 0.25 not in {known.value for known in read_known([file, bare]).values()}


def test_rows_that_differ_end_a_comparison_and_say_where_both_runs_are(plan_file: Path, tmp_path: Path) -> None:
    methods = [{"name": name, "learning_rates": [0.02]} for name in ("lora", "molora")]
    edited(plan_file, methods=methods[:1], seeds=[0])
    run(plan_file, tmp_path / "first")
    file = tmp_path / "first" / records.COMPARISON
    data = json.loads(file.read_text())
    data["tasks"][0]["rows"][0]["test"][0]["answers"][0]["rows"] = "of other rows"
    file.write_text(json.dumps(data))
    edited(plan_file, methods=methods)
    with pytest.raises(
        UserError, match=r"molora on tiny.*\(in .*second.*other rows than lora on .*\(known from .*first"
    ):
        run(plan_file, tmp_path / "second", file)
    with pytest.raises(UserError, match="rows than lora"):  # chosen rates as well as runs that rank
        edited(plan_file, seeds=[], tuning_seeds=[0])
        data["tasks"][0]["rows"][0]["test"][0]["settings"] = next(iter(read_validation(plan_file, tmp_path)))
        file.write_text(json.dumps(data))
        run(plan_file, tmp_path / "third", file)


def read_validation(plan_file: Path, tmp_path: Path) -> Any:
    """Settings of lora's run on validation rows."""
    run(plan_file, tmp_path / "validation")
    return list(read_known([tmp_path / "validation"]))[:1]


def test_runs_of_a_committed_file_are_known_to_this_version() -> None:
    """Else `identity` lacks a rule for a key that is new in the recipe."""
    results = Path(__file__).parents[2] / "results"
    known = read_known([results / "evidence-fixed-r32-mawps.json"])
    plan = load_plan(str(results / "evidence-fixed-r32-mawps.yaml"))
    assert outlook(plan, Path("nowhere"), known)[0].known == len(known) == 33


@pytest.mark.slow  # workers take 20 s to start; what they are given is tested in test_pool.py
def test_known_runs_and_workers(plan_file: Path, tmp_path: Path) -> None:
    run(plan_file, tmp_path / "first")
    edited(plan_file, seeds=[0, 1, 2], parallel=2)
    found, told = run(plan_file, tmp_path / "second", tmp_path / "first" / records.COMPARISON)
    assert len(told) == 2 and all("seed 2" in line for line in told)
    assert found["tasks"][0]["rows"][1]["paired_over"] == "seeds and examples"


def test_the_command_takes_files_and_says_so(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(single, seeds=[0])
    run(single, tmp_path / "first")
    edited(single, seeds=[1])
    run(single, tmp_path / "other")
    edited(single, seeds=[0, 1])
    files = [tmp_path / name / records.COMPARISON for name in ("first", "other")]
    known = [word for file in files for word in ("--known", str(file))]
    arguments = ["compare", str(single), "--output", str(tmp_path / "second"), *known]
    assert command_ends(*arguments, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 of 2" in out and "known" in out
    assert command_ends(*arguments) == 0
    command = records.read_json(tmp_path / "second" / records.COMPARISON)["run_info"]["command"]
    assert command.endswith(f"--known {files[0]} --known {files[1]}")
    files[0].write_text("{}")
    assert command_ends(*arguments) != 0
    assert f"known={files[0]}: is no comparison" in capsys.readouterr().err


DAMAGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda run: run["answers"][0].pop("right"), "is no comparison"),
    (lambda run: run["answers"][0].update(count="60"), "is no comparison"),
    (lambda run: run.update(answers="x"), "is no comparison"),
    (lambda run: run["info"].update(train_time=None), "is no comparison"),
    (lambda run: run["answers"][0].update(count=99), "do not hold 99 rows"),
    (lambda run: run["answers"][0].update(right="AAA="), "of them are right, and value is"),
    (lambda run: run["answers"][0].update(right="?"), "give the file as"),
]


def test_damaged_answers_are_one_line(plan_file: Path, tmp_path: Path) -> None:
    methods = [{"name": name, "learning_rates": [0.02]} for name in ("lora", "molora")]
    edited(plan_file, methods=methods, seeds=[0])
    finished = run(plan_file, tmp_path / "finished")[0]
    file = tmp_path / "damaged.json"
    for damage, said in DAMAGES:
        data = copy.deepcopy(finished)
        damage(data["tasks"][0]["rows"][1]["test"][0])
        file.write_text(json.dumps(data))
        with pytest.raises(UserError, match=f"^known={file}: .*{re.escape(said)}"):
            read_known([file])


def test_a_file_of_before_is_refused(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "results" / "evidence-fixed-r8.json"
    with pytest.raises(UserError, match=f"^known={file}: none of its runs says its settings"):
        read_known([file])


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 250])
def test_answers_are_kept_bit_by_bit(rows: int) -> None:
    answers = [Answers(str(start), [bool((row * 7 + start) % 3) for row in range(rows)]) for start in range(2)]
    blocks = packed(answers)
    assert blocks is not None and unpacked(json.loads(json.dumps(blocks))) == answers
    assert len(blocks[0]["right"]) <= 4 * (-(-rows // 8) // 3 + 1)
    assert packed(None) is None and unpacked(None) is None
