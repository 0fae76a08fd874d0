"""`goat compare` and `goat report` on tiny models: what is run, chosen, kept, and said."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from goat_peft import records
from goat_peft.cli import main
from goat_peft.compare import compare, load_plan, pool, shipped_plans
from goat_peft.compare.driver import choose, outlook
from goat_peft.errors import UserError
from goat_peft.methods.full import FullOptions
from goat_peft.recipes.schema import METHODS
from goat_peft.reporting.evidence import table
from goat_peft.reporting.page import write_report
from goat_peft.reporting.summary import read_summary


def run(plan_file: Path, output: Path, overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Compare; return the summary and what was run."""
    told: list[str] = []
    summary = compare(
        load_plan(str(plan_file), overrides), output, "goat compare", lambda trial, *_: told.append(str(trial))
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
    plan = yaml.safe_load(plan_file.read_text())
    plan["recipes"] = [{"recipe": plan["recipes"][0], "rate_factor": 2}]
    plan_file.write_text(yaml.safe_dump(plan))
    summary, told = run(plan_file, output)
    assert len(told) == 8  # 2 methods x (2 rates x 1 tuning seed + 2 test seeds)
    scored = [path.parent.name for path in results(output)]
    assert sum(name.endswith("_test") for name in scored) == 4
    for row in summary["tasks"][0]["rows"]:
        best = max(row["sweep"], key=lambda trial: (trial["value"], -trial["learning_rate"]))
        assert row["learning_rate"] == best["learning_rate"]
        assert [trial["learning_rate"] for trial in row["sweep"]] == [0.002, 0.04]  # twice the plan's
        for trial in row["test"]:
            recipe = records.read_json(output / trial["run"] / records.RESULT)["run_info"]["train_config"]
            assert recipe["training"]["learning_rate"] == row["learning_rate"]
        assert [trial["seed"] for trial in row["test"]] == [0, 1]
        assert row["mean"] == pytest.approx(sum(trial["value"] for trial in row["test"]) / 2)
    assert summary["tasks"][0]["rows"][0]["difference"] is None
    other = summary["tasks"][0]["rows"][1]
    assert other["low"] <= other["difference"] <= other["high"] and other["paired_over"] == "seeds and examples"
    assert not list(output.rglob("*.safetensors"))
    assert "learning rates 1e-3, 2e-2, times 2 on tiny" in table(read_summary(output / records.COMPARISON))

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
    assert len(told) == 2  # one rate: nothing to choose on validation; two seeds on test
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


def test_a_method_without_a_figure_is_one_line_and_an_exit_code_after_all_is_written(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate that diverges, as full's larger one first, is what a sweep is there to find, and no failure."""
    lora = "{name: lora, learning_rates: [1.0e-3, 2.0e-3]}"
    others = ("baseline=lora", "common={}", "overrides=[training.max_grad_norm=0]", "seeds=[0]")
    for rates, told in (("[1.0e-3, 1.0e+30]", "1 of 4 runs"), ("[1.0e+29, 1.0e+30]", "2 of 4 runs")):
        methods = f"methods=[{lora}, {{name: full, learning_rates: {rates}}}]"
        command = ["compare", str(plan_file), methods, *others, "--output", str(tmp_path / "out")]
        if told.startswith("1"):
            main_ok(*command)
        else:
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert stop.value.code == 1
        said = capsys.readouterr()
        assert f"{told} that choose a rate failed; their rates are out" in " ".join(said.out.split())
        assert "holds the figures" in said.out and read_summary(tmp_path / "out" / records.COMPARISON).rows
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert errors == [] if told.startswith("1") else "a run failed of full on" in errors[0]


def test_help_names_every_shipped_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok("compare", "--help")
    said = " ".join(re.sub(r"[^\w(),.-]+", " ", capsys.readouterr().out).split())
    assert f"a shipped plan ({', '.join(shipped_plans())})" in said


def test_ties_take_the_smaller_rate() -> None:
    class Fake:
        def __init__(self, rate: float, value: float | None) -> None:
            self.rate, self.value = rate, value

        def outcome(self) -> Fake:
            return self

    assert choose([Fake(0.3, 0.7), Fake(0.1, 0.7), Fake(0.2, 0.6)], [0.1, 0.2, 0.3]) == 0.1  # type: ignore[list-item]
    assert choose([Fake(0.3, None)], [0.3, 0.1]) is None  # type: ignore[list-item]
    assert choose([], [0.3]) == 0.3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("baseline=dora",), "plan.baseline=dora: is not among the methods"),
        (("methods=[lora, {name: dora, learning_rates: [0.1]}]",), "as many trials"),
        (("methods=[lorra]",), "did you mean lora"),
        (("seeds=[0, 0]",), "plan.seeds=[0, 0]: holds a value twice"),
        (("parallel=0",), "plan.parallel=0: should be greater than 0"),
        (
            ("overrides=[training.learning_rate=5]",),
            "plan.overrides=training.learning_rate=5: a comparison sets training.learning_rate itself; give a method's learning_rates",
        ),
        (("methods=[{name: lora, overrides: [method.r=16]}]",), "method.r=16: a comparison sets method.r itself"),
        (
            ("overrides=[evaluation.untrained=true]",),
            "a comparison sets evaluation.untrained=false itself; leave it out",
        ),
        (("overrides=[evaluation.every_steps=5]",), "a comparison sets evaluation.every_steps=0 itself; leave it out"),
        (("sedes=[0]",), "did you mean seeds"),
        (
            ("common.lora_alhpa=16",),
            "plan.common.lora_alhpa: no method of the plan has this option; did you mean lora_alpha",
        ),
        (("common.name=lora",), "plan.common.name: no method of the plan has this option"),
        (("common.preset=soft",), "plan.common.preset: no method of the plan has this option"),  # goat's alone
        (("candidates=[molorra]",), "plan.candidates=molorra: is not among the methods; did you mean molora"),
    ],
)
def test_a_plan_that_cannot_work_is_one_line(plan_file: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        load_plan(str(plan_file), overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_shipped_plans_hold_and_their_recipes_too(tmp_path: Path) -> None:
    assert shipped_plans() == ["ablations", "demo", "evidence", "evidence-fixed"]
    plan = load_plan("demo")
    assert len(plan.methods) == 9 and len(plan.seeds) == 2 and all(len(m.learning_rates) == 2 for m in plan.methods)
    for method in plan.methods:
        recipe = plan.recipe(plan.recipes[0], method, 1e-3, 0, "test", tmp_path)
        assert recipe.training.learning_rate == 1e-3 and recipe.method.name == method.name
        assert getattr(recipe.method, "lora_dropout", 0.0) == 0.0
    for name, methods in (("evidence", 14), ("evidence-fixed", 11)):
        plan = load_plan(name)
        assert len(plan.methods) == methods and len(plan.seeds) >= 5 and len(plan.recipes) == 7
        for task in plan.recipes:
            rank = {
                plan.recipe(task, method, 1e-3, 0, "test", tmp_path).method.model_dump().get("r", 8)
                for method in plan.methods
            }
            assert rank == {8}


def test_a_task_may_multiply_the_rates(tmp_path: Path) -> None:
    plan = load_plan("evidence")
    found = {task.label: plan.rates(task, plan.methods[1]) for task in plan.recipes}
    assert found["mrpc-minilm"] == [1e-4, 3e-4, 1e-3, 2e-3] and found["mawps-smollm2"] == [2e-4, 6e-4, 2e-3, 4e-3]


def test_ablations_change_one_thing_each_and_leave_the_test_rows_alone(tmp_path: Path) -> None:
    plan = load_plan("ablations")
    assert plan.seeds == [] and len(plan.tuning_seeds) >= 3
    settings = {
        method.label: plan.recipe(plan.recipes[1], method, 1e-3, 0, "validation", tmp_path).method.model_dump()
        for method in plan.methods
    }
    base = settings.pop("goat")
    changed = {label: {key for key in base if own[key] != base[key]} for label, own in settings.items()}
    assert all(keys for keys in changed.values())
    pairs = [label for label, keys in changed.items() if len(keys) > 1]
    assert all(label.startswith("alpha-") or label == "soft-from-zero" for label in pairs)
    assert {label for label, own in settings.items() if own["r"] != 8} == {"rank-16", "rank-32"}


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
    assert "intervals by paired bootstrap over seeds and examples, widened for few seeds by Student's t." in page
    assert page.count("<img") == page.count('alt="') >= 5
    names = {path.name for path in (output / "report").glob("*.png")}
    assert {"accuracy.png", "learning-rate.png", "cost.png", "curves.png", "experts.png"} <= names

    file = output / records.COMPARISON
    whole = records.read_json(file)
    for remove in (lambda data: data["tasks"][0].pop("split"), lambda data: data.pop("tasks")):
        data = copy.deepcopy(whole)
        remove(data)
        records.write_json(file, data)
        with pytest.raises(SystemExit) as stop:
            main(["report", str(output)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert str(file) in error and "older version" in error and "run `goat compare` again" in error


def test_two_tasks_get_a_table_over_both_and_a_stem_twice_is_refused(plan_file: Path, tmp_path: Path) -> None:
    recipe = Path(yaml.safe_load(plan_file.read_text())["recipes"][0])
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text())
    methods = "methods=[{name: lora, learning_rates: [0.02]}, {name: molora, learning_rates: [0.02]}]"
    output = tmp_path / "out"
    summary, told = run(plan_file, output, (f"recipes=[{recipe}, {other}]", methods, "seeds=[0]"))
    assert len(told) == 4
    assert [row["mean_rank"] for row in summary["overall"]] == [
        sum(task["rows"][i]["rank"] for task in summary["tasks"]) / 2 for i in range(2)
    ]
    assert summary["tasks"][0]["rows"][1]["paired_over"] == "examples"
    against = summary["overall"][1]["against"]["lora"]
    behind = summary["overall"][0]["against"]["molora"]
    assert behind == {
        "difference": -against["difference"],
        "low": pytest.approx(-against["high"]),
        "high": pytest.approx(-against["low"]),
    }
    page = write_report(output).read_text(encoding="utf-8")
    assert "intervals by paired bootstrap over examples.</p>" in page
    assert "All tasks" in page and "1 seed only" in page and (output / "report" / "other-accuracy.png").is_file()
    twin = tmp_path / "deeper" / recipe.name
    with pytest.raises(UserError, match="share a name"):
        load_plan(str(plan_file), (f"recipes=[{recipe}, {twin}]",))


def test_a_task_of_its_own_metric_overrides_and_methods(plan_file: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load(plan_file.read_text())
    recipe = plan["recipes"][0]
    plan["methods"] = [
        {"name": "lora", "learning_rates": [0.02]},
        {
            "name": "lora",
            "label": "still",
            "learning_rates": [0.02],
            "overrides": ["training.rate_factors={lora_B: 1e-9, classifier: 1e-9}"],
        },
        {"name": "molora", "learning_rates": [0.02]},
    ]
    plan["recipes"] = [
        {"recipe": recipe, "label": "short", "overrides": ["training.max_steps=2"], "methods": ["lora", "still"]},
        {"recipe": recipe, "metric": "matthews", "seeds": [3]},
    ]
    plan_file.write_text(yaml.safe_dump(plan))
    summary, told = run(plan_file, tmp_path / "out")
    assert len(told) == 2 * 2 + 3
    short, tiny = summary["tasks"]
    assert (short["name"], tiny["name"]) == ("short", "tiny")
    assert [row["label"] for row in short["rows"]] == ["lora", "still"] and len(tiny["rows"]) == 3
    assert tiny["metric"] == "matthews" and [t["seed"] for t in tiny["rows"][0]["test"]] == [3]
    result = records.read_json(tmp_path / "out" / short["rows"][0]["test"][0]["run"] / records.RESULT)
    assert result["train_info"]["metrics"][-1]["step"] == 2
    overall = {row["label"]: row for row in summary["overall"]}
    assert overall["molora"]["mean"] is None and overall["molora"]["difference"] is None
    gaps = [task["rows"][1]["difference"] for task in summary["tasks"]]
    assert overall["still"]["difference"] == pytest.approx(sum(gaps) / 2)
    # `tiny` has one seed and a figure that is no mean over rows: what it would be on another seed is not known, nor then the average.
    assert overall["still"]["low"] is None and overall["still"]["high"] is None
    assert short["rows"][1]["low"] <= short["rows"][1]["difference"] <= short["rows"][1]["high"]
    assert (short["freedom"], tiny["freedom"]) == (1, 0)
    ahead, behind = overall["still"]["against"]["lora"], overall["lora"]["against"]["still"]
    assert ahead == {key: overall["still"][key] for key in ("difference", "low", "high")}
    assert behind == {"difference": -ahead["difference"], "low": None, "high": None}
    assert overall["molora"]["against"] == {} and set(overall["lora"]["against"]) == {"still"}
    assert [row["paired_over"] for row in (short["rows"][1], tiny["rows"][1])] == ["seeds and examples", None]
    (place,) = summary["run_info"]["ran_on"]
    assert place["accelerator"] == "cpu" and place["peft-version"]
    text = table(read_summary(tmp_path / "out" / records.COMPARISON))
    assert "molora was not to run on short" in text and "without intervals: nothing can be redrawn on tiny" in text
    with pytest.raises(UserError, match="leaves out the baseline"):
        load_plan(str(plan_file), (f"recipes=[{{recipe: {recipe}, methods: [molora]}}]",))


def test_a_method_of_this_process_alone_is_not_given_to_workers(plan_file: Path, tmp_path: Path) -> None:
    class Mine(FullOptions):
        name: Literal["mine"] = "mine"

    METHODS.register(replace(METHODS["full"], name="mine", options=Mine))
    try:
        own = "methods=[{name: lora, learning_rates: [0.1]}, {name: mine, learning_rates: [0.1]}]"
        with pytest.raises(UserError, match=r"plan\.methods: mine is registered by .*test_compare.*; give parallel=1"):
            run(plan_file, tmp_path / "out", ("parallel=2", own))
    finally:
        METHODS.unregister("mine")


def test_a_count_is_no_metric(plan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric=samples: tiny does not report it; choose from accuracy, ") as error:
        run(plan_file, tmp_path / "out", ("metric=samples", "methods=[lora]", "seeds=[0]"))
    assert "samples" not in str(error.value).partition("choose from")[2]


def test_a_dry_run_counts_and_runs_nothing(plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--output", str(tmp_path / "out")]
    main_ok("compare", str(plan_file), *place, "--dry-run")
    assert "0 of 8 runs" in capsys.readouterr().out and not (tmp_path / "out").exists()
    run(plan_file, tmp_path / "out", ("seeds=[]", "tuning_seeds=[0]"))  # the four that choose rates
    before = sorted((tmp_path / "out").rglob("*"))
    main_ok("compare", str(plan_file), *place, "--dry-run")
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 4" in said and "0 of 4" in said and "4 of 8 runs" in said
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_task_may_choose_its_rates_with_seeds_of_its_own(plan_file: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(plan_file.read_text())["recipes"][0]
    tasks = f"recipes=[{{recipe: {recipe}, label: noisy, tuning_seeds: [0, 1, 2]}}, {{recipe: {recipe}, label: calm}}]"
    noisy, calm = outlook(load_plan(str(plan_file), [tasks]), tmp_path / "out")
    assert (noisy.tuning, calm.tuning) == (2 * 2 * 3, 2 * 2)
    with pytest.raises(UserError, match=r"tuning_seeds=\[1, 1\]: holds a value twice"):
        load_plan(str(plan_file), [tasks.replace("0, 1, 2", "1, 1")])


def test_a_wrong_path_ends_a_comparison_before_its_first_run(plan_file: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(plan_file.read_text())["recipes"][0]
    wrong = f"{{recipe: {recipe}, label: wrong, overrides: [task.data.train.path=/no/such.jsonl]}}"
    with pytest.raises(UserError, match=r"task.data.train.path=/no/such.jsonl: no such file or folder"):
        run(plan_file, tmp_path / "out", (f"recipes=[{recipe}, {wrong}]",))
    assert not (tmp_path / "out").exists()


def test_without_seeds_the_test_split_is_left_alone(plan_file: Path, tmp_path: Path) -> None:
    summary, told = run(plan_file, tmp_path / "out", ("seeds=[]", "tuning_seeds=[1]"))
    assert len(told) == 4 and not list((tmp_path / "out").rglob("*_test"))
    task = summary["tasks"][0]
    assert task["split"] == "validation"
    for row in task["rows"]:
        means = {rate: [t["value"] for t in row["sweep"] if t["learning_rate"] == rate] for rate in (0.001, 0.02)}
        assert row["mean"] == pytest.approx(max(value for (value,) in means.values()))
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "flatter" in page and "test accuracy" not in page


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_run_alone(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pool._Worker.give

    def give(worker: Any, trial: Any) -> None:
        given(worker, trial)
        if trial.label == "molora" and trial.seed == 0:
            worker.process.kill()

    monkeypatch.setattr(pool._Worker, "give", give)
    methods = "methods=[{name: lora, learning_rates: [0.02]}, {name: molora, learning_rates: [0.02]}]"
    summary, told = run(plan_file, tmp_path / "out", ("parallel=2", methods))
    lora, molora = summary["tasks"][0]["rows"]
    assert [(t["seed"], t["error"]) for t in molora["test"]] == [(0, "did not run"), (1, None)]
    assert len(told) == 5 and told.count("molora on tiny, lr 0.02, seed 0, test") == 2, "it was tried once more"
    assert lora["mean"] is not None and molora["mean"] is None


def test_report_of_nothing_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "goat compare" in capsys.readouterr().err


def main_ok(*arguments: str) -> None:
    """Run the command and expect success."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
