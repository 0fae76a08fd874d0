"""`goat compare` and `goat report` on tiny models: what is run, chosen, kept, and said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from goat_peft import records
from goat_peft.cli import main
from goat_peft.compare import compare, load_plan, shipped_plans
from goat_peft.compare.driver import choose
from goat_peft.errors import UserError
from goat_peft.recipes.schema import METHODS
from goat_peft.reporting.page import write_report


def run(plan_file: Path, output: Path, overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Compare; return the summary and what was run."""
    told: list[str] = []
    summary = compare(
        load_plan(str(plan_file), overrides), output, "goat compare", lambda trial, done, total: told.append(str(trial))
    )
    return summary, told


def results(output: Path) -> dict[Path, float]:
    """Result files and their times of writing."""
    return {path: path.stat().st_mtime for path in output.rglob(records.RESULT)}


def figures(summary: dict[str, Any]) -> list[Any]:
    """What a comparison found, without times."""
    return [
        [
            row["label"],
            row["learning_rate"],
            [t["value"] for t in row["sweep"]],
            [t["value"] for t in row["test"]],
            row["low"],
            row["high"],
        ]
        for task in summary["tasks"]
        for row in task["rows"]
    ]


def test_choice_on_validation_then_test_once_per_seed_and_never_again(plan_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary, told = run(plan_file, output)
    assert len(told) == 8  # 2 methods x (2 rates x 1 tuning seed + 2 test seeds)
    scored = [path.parent.name for path in results(output)]
    assert sum(name.endswith("_test") for name in scored) == 4
    for row in summary["tasks"][0]["rows"]:
        best = max(row["sweep"], key=lambda trial: (trial["value"], -trial["learning_rate"]))
        assert row["learning_rate"] == best["learning_rate"]
        assert [trial["seed"] for trial in row["test"]] == [0, 1]
        assert row["mean"] == pytest.approx(sum(trial["value"] for trial in row["test"]) / 2)
    assert summary["tasks"][0]["rows"][0]["difference"] is None
    other = summary["tasks"][0]["rows"][1]
    assert other["low"] <= other["difference"] <= other["high"] and other["paired_over"] == "seeds and examples"
    assert not list(output.rglob("*.safetensors"))

    before = results(output)
    again, told = run(plan_file, output)
    assert told == [] and results(output) == before and figures(again) == figures(summary)

    third, told = run(plan_file, output, ("seeds=[0, 1, 2]",))
    assert len(told) == 2 and len(third["tasks"][0]["rows"][0]["test"]) == 3
    with pytest.raises(UserError, match="holds a run with other settings"):
        run(plan_file, output, ("overrides=[training.batch_size=4]",))


def test_same_seeds_give_the_same_numbers_also_in_processes_of_their_own(plan_file: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load(plan_file.read_text())
    plan |= {"methods": [{"name": "molora", "learning_rates": [0.02]}], "baseline": "molora"}
    plan_file.write_text(yaml.safe_dump(plan))
    first, _ = run(plan_file, tmp_path / "first")
    second, told = run(plan_file, tmp_path / "second", ("parallel=2",))
    assert len(told) == 3  # one rate on validation, two seeds on test
    assert figures(first) == figures(second)
    for path in (tmp_path / "first").rglob(records.RESULT):
        twin = tmp_path / "second" / path.relative_to(tmp_path / "first")
        losses = [
            [row.get("train loss") for row in records.read_json(p)["train_info"]["metrics"]] for p in (path, twin)
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_kill_in_the_middle_leaves_no_half_result_and_the_rest_is_completed(plan_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        "from goat_peft.cli import main; main()",
        "compare",
        str(plan_file),
        "--output",
        str(output),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(results(output)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results(output)
    assert 2 <= len(before) < 8
    assert all(json.loads(path.read_text())["train_info"]["status"] == "success" for path in before)
    assert not (output / records.COMPARISON).exists()
    summary, told = run(plan_file, output)
    assert len(told) == 8 - len(before)
    after = results(output)
    assert len(after) == 8 and all(after[path] == before[path] for path in before)
    assert all(row["mean"] is not None for row in summary["tasks"][0]["rows"])


def test_a_failed_run_is_out_and_tried_again(plan_file: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load(plan_file.read_text())
    plan["methods"] = [
        {"name": "full", "learning_rates": [0.001, 1e30]},
        {"name": "lora", "learning_rates": [0.001, 0.02]},
    ]
    plan["overrides"] = ["training.max_grad_norm=0"]
    plan_file.write_text(yaml.safe_dump(plan))
    summary, _ = run(plan_file, tmp_path / "out")
    full = summary["tasks"][0]["rows"][0]
    assert full["learning_rate"] == 0.001
    assert "the loss is" in full["sweep"][1]["error"] and full["sweep"][1]["value"] is None
    _, told = run(plan_file, tmp_path / "out")
    assert [text for text in told if "lr 1e+30" in text] == told and len(told) == 1


def test_ties_take_the_smaller_rate() -> None:
    class Fake:
        def __init__(self, rate: float, value: float | None) -> None:
            self.rate, self.value = rate, value

        def outcome(self, metric: str) -> Fake:
            return self

    assert choose([Fake(0.3, 0.7), Fake(0.1, 0.7), Fake(0.2, 0.6)], "accuracy") == 0.1  # type: ignore[list-item]
    assert choose([Fake(0.3, None)], "accuracy") is None  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("baseline=dora",), "plan.baseline=dora: is not among the methods"),
        (("methods=[lora, {name: dora, learning_rates: [0.1]}]",), "as many trials"),
        (("methods=[lorra]",), "did you mean lora"),
        (("seeds=[0, 0]",), "plan.seeds: "),
        (("sedes=[0]",), "did you mean seeds"),
    ],
)
def test_a_plan_that_cannot_work_is_one_line(plan_file: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        load_plan(str(plan_file), overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_shipped_plans_hold_and_their_recipes_too(tmp_path: Path) -> None:
    assert shipped_plans() == ["demo"]
    plan = load_plan("demo")
    assert len(plan.methods) == 9 and len(plan.seeds) == 2 and all(len(m.learning_rates) == 2 for m in plan.methods)
    for method in plan.methods:
        recipe = plan.recipe(plan.recipes[0], method, 1e-3, 0, "test", tmp_path)
        assert recipe.training.learning_rate == 1e-3 and recipe.method.name == method.name
        assert getattr(recipe.method, "lora_dropout", 0.0) == 0.0


def test_methods_without_rates_get_their_grid(plan_file: Path) -> None:
    plan = load_plan(str(plan_file), ("methods=[lora, full]",))
    assert plan.methods[1].learning_rates == list(METHODS["full"].learning_rates)


def test_report_is_one_page_without_requests(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    main_ok("compare", str(plan_file), "--output", str(output))
    assert "molora" in capsys.readouterr().out
    main_ok("report", str(output))
    page = (output / "report" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    assert "goat compare" in page and "molora" in page and "torch" in page
    assert page.count("<img") == page.count('alt="') >= 5
    names = {path.name for path in (output / "report").glob("*.png")}
    assert {"accuracy.png", "learning-rate.png", "cost.png", "curves.png", "experts.png"} <= names


def test_two_tasks_get_a_table_over_both_and_a_stem_twice_is_refused(plan_file: Path, tmp_path: Path) -> None:
    recipe = Path(yaml.safe_load(plan_file.read_text())["recipes"][0])
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text())
    methods = "methods=[{name: lora, learning_rates: [0.02]}, {name: molora, learning_rates: [0.02]}]"
    output = tmp_path / "out"
    summary, told = run(plan_file, output, (f"recipes=[{recipe}, {other}]", methods, "seeds=[0]"))
    assert len(told) == 8
    assert [row["mean_rank"] for row in summary["overall"]] == [
        sum(task["rows"][i]["rank"] for task in summary["tasks"]) / 2 for i in range(2)
    ]
    page = write_report(output).read_text(encoding="utf-8")
    assert "All tasks" in page and "1 seed only" in page and (output / "report" / "other-accuracy.png").is_file()
    twin = tmp_path / "deeper" / recipe.name
    with pytest.raises(UserError, match="share a file name"):
        load_plan(str(plan_file), (f"recipes=[{recipe}, {twin}]",))


def test_report_of_nothing_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "goat compare" in capsys.readouterr().err


def main_ok(*arguments: str) -> None:
    """Run the command and expect success."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
