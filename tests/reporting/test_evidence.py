"""`goat report FILE.json`: tables whose every figure can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comparisons import ROOT, cells, gap, made_up, stored, unranked

from goat_peft.reporting.evidence import rate_text, table
from goat_peft.reporting.summary import read_summary


def test_a_table_says_what_was_found(tmp_path: Path) -> None:
    text = table(read_summary(stored(made_up(), tmp_path / "mine.json")))
    found = cells(text)
    assert found["method"] == [
        "rte<br>accuracy",
        "cola<br>matthews",
        "average",
        "mean rank",
        "less lora",
        "less full",
        "trained parameters",
        "seconds",
    ]
    assert found["goat"] == [
        "**63.0** ± 2.8 (2.5e-4)",
        "32.0 ± 2.8 (2.5e-4)",
        "47.50",
        "1.5",  # first on rte, second on cola
        "+3.50 (+2.00 to +5.00)",
        "-0.50 (-3.00 to +2.00)",
        "400 k to 1.20 M",
        "20",
    ]
    assert found["full"][1:7] == ["**35.0** ± 7.1 (1e-5)", "**48.00**", "1.5", "+4.00 (+1.00 to +7.00)", "-", "22.00 M"]
    assert found["lora"][0] == "58.0 ± 0.0 (2.5e-4)" and found["lora"][4] == "-"
    caption, origin = text.splitlines()[0], text.splitlines()[-1]
    assert "mine" in caption and "r=8" in caption and "over seeds alone on cola" in caption
    for said in (
        "Test split; seeds 3, 4; learning rates 1e-4, 2.5e-4, for full 1e-5, 3e-5",
        "NVIDIA H100",
        "torch 1.2",
    ):
        assert said in origin
    assert "goat compare mine" in origin and "mine.json" in origin
    best = next(line for line in text.splitlines() if line.startswith("Best of goat, goat-2: goat, 47.50"))
    assert "less lora, the best of the other methods but full: +3.50 (+2.00 to +5.00); less full: -0.50" in best
    assert best.endswith(
        "The best of the candidates was picked by these averages, which the intervals leave out of account."
    )
    assert "by Student's t, degrees of freedom after Welch and Satterthwaite)" in caption
    assert "; seconds of training, mean over tasks; mean rank over tasks: 1 is best; bold" in caption


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (
            {"goat-peft-commit-hash": "5e3184215a3119351ddec66ab3ad96decd1bd871"},
            "goat-peft 1.2 at 5e3184215, torch 1.2",
        ),
        ({"goat-peft-commit-hash": "5e3184215a31-dirty"}, "goat-peft 1.2 at 5e3184215 with changes, torch 1.2"),
        ({"goat-peft-version": None}, "goat-peft from source, torch 1.2"),
    ],
)
def test_the_code_that_ran_is_told(tmp_path: Path, packages: dict[str, str | None], said: str) -> None:
    data = made_up()
    data["run_info"]["ran_on"][0] |= packages
    assert said in table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[-1]


def test_the_seeds_that_chose_rates_are_told_by_task_where_they_differ(tmp_path: Path) -> None:
    data = made_up()
    for task, seeds in zip(data["tasks"], ([7], [7, 8]), strict=True):
        for row in task["rows"]:
            row["sweep"] = [
                {"learning_rate": row["learning_rate"], "seed": seed, "value": 0.5, "error": None} for seed in seeds
            ]
    origin = table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[-1]
    first, second = (task["name"] for task in data["tasks"])
    assert f"seeds 3, 4; rates chosen with seeds 7 ({first}), 7, 8 ({second}); learning rates" in origin
    data["tasks"][1]["rows"] = [row | {"sweep": row["sweep"][:1]} for row in data["tasks"][1]["rows"]]
    origin = table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[-1]
    assert "seeds 3, 4; rates chosen with seed 7; learning rates" in origin


def test_a_lone_task_has_a_number_of_degrees_of_freedom(tmp_path: Path) -> None:
    caption = table(read_summary(stored(made_up(("rte",)), tmp_path / "mine.json"))).splitlines()[0]
    assert "widened for few seeds by Student's t with 1 degrees of freedom)" in caption


def test_seconds_of_runs_side_by_side_are_no_comparison(tmp_path: Path) -> None:
    data = made_up()
    data["run_info"]["plan"]["parallel"] = 2
    caption = table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[0]
    assert (
        "seconds of training, mean over tasks, of runs that may have shared a device: no speed comparison;" in caption
    )
    for plain in (1, None):
        data["run_info"]["plan"] |= {"parallel": plain}
        if plain is None:
            del data["run_info"]["plan"]["parallel"]
        assert "speed" not in table(read_summary(stored(data, tmp_path / "mine.json")))


def test_tasks_that_multiply_the_rates_are_named(tmp_path: Path) -> None:
    data = made_up()
    rates = "learning rates 1e-4, 2.5e-4, for full 1e-5, 3e-5"
    for recipes, said in (
        ([{"label": "rte", "rate_factor": 2}, {"label": "cola"}], f"{rates}, times 2 on rte;"),
        ([{"label": "rte", "rate_factor": 0.5}, {"label": "cola", "rate_factor": 0.5}], "times 0.5 on rte and cola;"),
        ([{"label": "rte", "rate_factor": 1}, {"label": "cola", "rate_factor": 3.0}], f"{rates}, times 3 on cola;"),
        (["rte", "cola"], f"{rates};"),  # files of before
        ([], f"{rates};"),
    ):
        data["run_info"]["plan"]["recipes"] = recipes
        text = table(read_summary(stored(data, tmp_path / "mine.json")))
        assert said in text and "each method's learning rate chosen on validation;" in text
    del data["run_info"]["plan"]["recipes"]
    assert f"{rates};" in table(read_summary(stored(data, tmp_path / "mine.json")))


def test_a_failed_or_missing_run_leaves_no_average(tmp_path: Path) -> None:
    data = made_up()
    rte, cola = data["tasks"]
    failed = next(row for row in rte["rows"] if row["label"] == "goat-2")
    failed["test"][1] |= {"value": None, "error": "the loss is nan"}
    failed |= {"mean": None, "sd": None, **gap(None)}
    cola["rows"][2]["sweep"] = [
        {"learning_rate": 2.5e-4, "value": 0.3, "error": None},
        {"learning_rate": 1e-4, "value": None, "error": "the loss is nan"},
    ]
    cola["rows"] = [row for row in cola["rows"] if row["label"] != "full"]
    unranked(data, "full", "goat-2")
    text = table(read_summary(stored(data, tmp_path / "mine.json")))
    found = cells(text)
    assert found["goat-2"][:5] == ["failed", "20.0 ± 0.0 (2.5e-4)", "-", "-", "-"] and found["goat-2"][-1] == "-"
    assert found["full"][:5] == ["61.0 ± 1.4 (1e-5)", "-", "-", "-", "-"]
    assert "the best of the other methods but full: +3.50 (+2.00 to +5.00); less full: -." in text
    assert found["goat"][2] == "**47.50**"
    assert "full was not to run on cola; goat-2 on rte: 1 of 2 runs failed (`the loss is nan`)" in text
    assert "not among them: goat-2." in text
    assert "Of 2 runs that chose learning rates 1 failed" in text


def test_a_method_that_a_lone_task_leaves_out_has_no_difference(tmp_path: Path) -> None:
    data = made_up(("rte",))
    del data["tasks"][0]["rows"][3]
    unranked(data, "goat-2")
    assert cells(table(read_summary(stored(data, tmp_path / "mine.json"))))["goat-2"] == ["-"] * 5


def test_methods_that_train_every_weight_are_no_rivals_of_candidates(tmp_path: Path) -> None:
    data = made_up()
    for task in data["tasks"]:
        task["rows"][0]["method"] = "full-moe"  # under the label `full`
    text = table(read_summary(stored(data, tmp_path / "mine.json")))
    assert "less lora, the best of the other methods but full: +3.50 (+2.00 to +5.00); less full: -0.50" in text
    data["run_info"]["plan"]["candidates"] = ["full"]
    text = table(read_summary(stored(data, tmp_path / "mine.json")))
    assert "Best of full: full, 48.00; less goat, the best of the other methods: +0.50" in text


@pytest.mark.parametrize(
    ("over", "freedom", "said"),
    [
        (("examples", "examples"), 0, "bootstrap over rows alone; one seed, whose spread is not known)"),
        (("seeds", "examples"), 4, "bootstrap over seeds alone, over rows alone on cola; widened"),
        (
            ("seeds", "seeds"),
            4,
            "bootstrap over seeds alone; widened for few seeds by Student's t, degrees of freedom after",
        ),
        (("seeds", "seeds"), None, "over seeds alone; too narrow where seeds are few: the file is older"),
        (("seeds", None), 0, "differences of averages in points without intervals: nothing can be redrawn on cola;"),
    ],
)
def test_a_caption_says_how_intervals_were_made(
    over: tuple[str | None, ...], freedom: int | None, said: str, tmp_path: Path
) -> None:
    data = made_up()
    for task, kind in zip(data["tasks"], over, strict=True):
        task["freedom"] = freedom
        if freedom is None:
            del task["freedom"]
        for row in task["rows"]:
            row["paired_over"] = None if row["label"] == "lora" else kind
    if None in over:
        for row in data["overall"]:
            for found in [row, *row["against"].values()]:
                found |= {"low": None, "high": None}
    assert said in table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[0]


def test_a_caption_names_the_files_that_were_put_together(tmp_path: Path) -> None:
    data = made_up()
    data["run_info"]["combined"] = [{"file": "one.json"}, {"file": "two.json"}]
    caption = table(read_summary(stored(data, tmp_path / "mine.json"))).splitlines()[0]
    assert "intervals (variances of one.json and two.json added, each of a paired bootstrap" in caption


def test_development_on_validation_rows_says_so_and_so_does_one_rate(tmp_path: Path) -> None:
    data = made_up()
    for task in data["tasks"]:
        task["split"] = "validation"
    caption = table(read_summary(stored(data, tmp_path / "dev.json"))).splitlines()[0]
    assert "validation split" in caption and "flatters" in caption and "test split" not in caption
    data = made_up()
    for method in data["run_info"]["plan"]["methods"]:
        method["learning_rates"] = method["learning_rates"][:1]
    text = table(read_summary(stored(data, tmp_path / "fixed.json")))
    assert "one learning rate per method;" in text and cells(text)["goat"][0] == "**63.0** ± 2.8"
    data["run_info"]["plan"]["recipes"][1]["rate_factor"] = 2.0
    text = table(read_summary(stored(data, tmp_path / "fixed.json")))
    assert "one learning rate per method, times the task's factor;" in text
    assert "learning rates 1e-4, for full 1e-5, times 2 on cola;" in text


def test_files_from_before_the_differences_of_all_pairs_are_read(tmp_path: Path) -> None:
    text = table(read_summary(ROOT / "results" / "compare-demo.json"))
    assert cells(text)["molora"][1] == "-2.12 (-5.88 to +1.62)"  # of the task's own row
    assert "less full" not in text and "older than differences to full" in text
    data = made_up()
    for row in data["overall"]:
        del row["against"]
    assert cells(table(read_summary(stored(data, tmp_path / "old.json"))))["goat"][4] == "+3.50 (+2.00 to +5.00)"


def test_what_the_plan_set_for_methods_tasks_and_all_is_below_the_table(tmp_path: Path) -> None:
    data = made_up()
    plan = data["run_info"]["plan"]
    assert not {"Options", "Overrides"} & {line.partition(":")[0] for line in lines(data, tmp_path)}
    plan["methods"][2]["options"] = {"preset": "soft", "shared_A": True}
    plan["methods"][3] |= {"options": {"rates": {"a": 1}}, "overrides": ["training.epochs=2", "x=`|`"]}
    plan["overrides"] = ["training.bf16=true", "evaluation.folder=/tmp/t"]
    plan["recipes"][0]["overrides"] = [
        "task.data.train={path: /tmp/train.jsonl, rows: 9}",
        "task.data.test={path: /tmp/test.jsonl, limit: 4}",
        "task.data.folder=/tmp",
        "task.data.test.rows=3",
        "task.data.train.limit=100",
        "model=/tmp/model",
    ]
    plan["recipes"][1]["overrides"] = ["model=/tmp/model"]
    found = lines(data, tmp_path)
    assert (
        "Options: goat `preset=soft`, `shared_A=true`; goat-2 `rates={\"a\": 1}`, `training.epochs=2`, `x='|'`."
        in found
    )
    assert (
        "Overrides: every run `training.bf16=true`; "
        "rte `task.data.test={path: /tmp/test.jsonl, limit: 4}`, `task.data.train.limit=100`."
    ) in found


def lines(data: dict[str, Any], folder: Path) -> list[str]:
    return table(read_summary(stored(data, folder / "mine.json"))).splitlines()


def test_rates_are_short() -> None:
    assert [rate_text(rate) for rate in (1e-4, 2.5e-5, 0.003, 1.0)] == ["1e-4", "2.5e-5", "3e-3", "1e0"]
