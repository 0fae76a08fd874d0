"""`goat report FILE.json`: tables whose every figure can be worked out by hand, and pages that hold them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.reporting import tabled
from goat_peft.reporting.evidence import rate_text, table
from goat_peft.reporting.inserted import parts
from goat_peft.reporting.summary import read_summary

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evidence.md"
VALUES = {  # by task and method, in the order of the seeds
    "rte": {"full": [0.60, 0.62], "lora": [0.58, 0.58], "goat": [0.61, 0.65], "goat-2": [0.5, 0.5]},
    "cola": {"full": [0.30, 0.40], "lora": [0.25, 0.35], "goat": [0.30, 0.34], "goat-2": [0.2, 0.2]},
}


def gap(difference: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"difference": difference, "low": low, "high": high}


def made_up() -> dict[str, Any]:
    """Four methods, two tasks, two seeds, two learning rates."""

    def row(task: str, label: str) -> dict[str, Any]:
        first, second = VALUES[task][label]
        return {
            "label": label,
            "method": label.removesuffix("-2"),
            "learning_rate": 1e-5 if label == "full" else 2.5e-4,
            "sweep": [],
            "test": [{"seed": 3 + i, "value": v, "error": None} for i, v in enumerate((first, second))],
            "mean": (first + second) / 2,
            "sd": abs(first - second) / 2**0.5,
            "parameters": 22_000_000 if label == "full" else (400_000 if task == "rte" else 1_200_000),
            "train_time": 10.0 if task == "rte" else 31.0,
            "paired_over": None if label == "lora" else ("seeds and examples" if task == "rte" else "seeds"),
            **gap(None),
        }

    tasks = [
        {"task": t, "name": t, "metric": m, "split": "test", "rows": [row(t, label) for label in VALUES[t]]}
        for t, m in (("rte", "accuracy"), ("cola", "matthews"))
    ]
    against = {
        "full": {"lora": gap(0.04, 0.01, 0.07), "goat": gap(0.005, -0.02, 0.03)},
        "lora": {"full": gap(-0.04, -0.07, -0.01), "goat": gap(-0.035, -0.05, -0.02)},
        "goat": {"lora": gap(0.035, 0.02, 0.05), "full": gap(-0.005, -0.03, 0.02)},
        "goat-2": {"lora": gap(-0.09, -0.1, -0.08), "full": gap(-0.13, -0.2, -0.1)},
    }
    overall = [
        {
            "label": label,
            "mean": (sum(VALUES["rte"][label]) + sum(VALUES["cola"][label])) / 4,
            "mean_rank": 2.0,
            **against[label].get("lora", gap(None)),
            "against": against[label],
        }
        for label in VALUES["rte"]
    ]
    methods = [
        {"label": label, "learning_rates": [1e-5, 3e-5] if label == "full" else [1e-4, 2.5e-4]}
        for label in VALUES["rte"]
    ]
    packages = {f"{name}-version": "1.2" for name in ("goat-peft", "torch", "transformers", "peft")}
    return {
        "run_info": {
            "created_at": "2026-11-23T10:00:00+00:00",
            "command": "goat compare mine",
            "plan": {"common": {"r": 8}, "methods": methods, "baseline": "lora", "candidates": ["goat", "goat-2"]},
            "ran_on": [{"accelerator": "NVIDIA H100", **packages}],
        },
        "tasks": tasks,
        "overall": overall,
        "meta_info": {"system_info": {"accelerator": "cpu", "processor": "a CPU"}, "package_info": packages},
    }


def stored(data: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def cells(text: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def run(*arguments: str) -> Any:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    return stop.value.code


def test_a_table_says_what_was_found(tmp_path: Path) -> None:
    text = table(read_summary(stored(made_up(), tmp_path / "mine.json")))
    found = cells(text)
    assert found["method"] == [
        "rte<br>accuracy",
        "cola<br>matthews",
        "average",
        "less lora",
        "less full",
        "trained parameters",
        "seconds",
    ]
    assert found["goat"] == [
        "**63.0** ± 2.8 (2.5e-4)",
        "32.0 ± 2.8 (2.5e-4)",
        "47.50",
        "+3.50 (+2.00 to +5.00)",
        "-0.50 (-3.00 to +2.00)",
        "400 k to 1.20 M",
        "20",
    ]
    assert found["full"][1:6] == ["**35.0** ± 7.1 (1e-5)", "**48.00**", "+4.00 (+1.00 to +7.00)", "-", "22.00 M"]
    assert found["lora"][0] == "58.0 ± 0.0 (2.5e-4)" and found["lora"][3] == "-"
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
    assert "less lora, the best of the other adapters: +3.50 (+2.00 to +5.00); less full: -0.50" in best


def test_a_failed_or_missing_run_leaves_no_average(tmp_path: Path) -> None:
    data = made_up()
    rte, cola = data["tasks"]
    failed = next(row for row in rte["rows"] if row["label"] == "goat-2")
    failed["test"][1] |= {"value": None, "error": "the loss is nan"}
    failed |= {"mean": None, "sd": None}
    cola["rows"][2]["sweep"] = [{"value": 0.3, "error": None}, {"value": None, "error": "the loss is nan"}]
    cola["rows"] = [row for row in cola["rows"] if row["label"] != "full"]
    for place in (0, 3):
        data["overall"][place] |= {"mean": None, "mean_rank": None, "against": {}, **gap(None)}
    text = table(read_summary(stored(data, tmp_path / "mine.json")))
    found = cells(text)
    assert found["goat-2"][:5] == ["failed", "20.0 ± 0.0 (2.5e-4)", "-", "-", "-"] and found["goat-2"][-1] == "-"
    assert found["full"][:5] == ["61.0 ± 1.4 (1e-5)", "-", "-", "-", "-"]
    assert found["goat"][2] == "**47.50**"
    assert "full was not to run on cola; goat-2 on rte: 1 of 2 runs failed (`the loss is nan`)" in text
    assert "not among them: goat-2." in text
    assert "Of 2 runs that chose learning rates 1 failed" in text


def test_a_mean_that_is_not_its_runs_is_refused(tmp_path: Path) -> None:
    data = made_up()
    data["tasks"][0]["rows"][2]["mean"] = 0.7
    with pytest.raises(UserError, match="goat on rte has mean 0.7, and its runs say 0.63"):
        read_summary(stored(data, tmp_path / "mine.json"))
    data = made_up()
    data["overall"][2]["mean"] = 0.7
    with pytest.raises(UserError, match="the average of goat has mean 0.7"):
        read_summary(stored(data, tmp_path / "mine.json"))
    data = made_up()
    del data["tasks"][1]["split"]
    for text in ("[]", "{", '{"rows": []}', json.dumps(data)):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match=r"file=.*other\.json: .*comparison\.json") as error:
            read_summary(tmp_path / "other.json")
        assert "\n" not in str(error.value)


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
    assert "one learning rate per method" in text and cells(text)["goat"][0] == "**63.0** ± 2.8"


def test_files_from_before_the_differences_of_all_pairs_are_read(tmp_path: Path) -> None:
    text = table(read_summary(ROOT / "results" / "compare-demo.json"))
    assert cells(text)["molora"][1] == "-2.12 (-5.88 to +1.62)"  # of the task's own row
    assert "less full" not in text and "older than differences to full" in text
    data = made_up()
    for row in data["overall"]:
        del row["against"]
    assert cells(table(read_summary(stored(data, tmp_path / "old.json"))))["goat"][3] == "+3.50 (+2.00 to +5.00)"


def test_tables_on_the_screen_and_in_a_file_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (stored(made_up(), tmp_path / "results" / f"{name}.json") for name in ("fixed", "fair"))
    other = made_up()
    other["tasks"] = copy.deepcopy(other["tasks"][:1])
    for row in other["overall"]:
        row["mean"] = sum(VALUES["rte"][row["label"]]) / 2
    third = stored(other, tmp_path / "results" / "small.json")
    assert run(str(first), str(second)) == 0
    assert capsys.readouterr().out.count("| goat |") == 2
    assert not list(tmp_path.rglob("*.png"))
    page = tmp_path / "docs" / "page.md"
    assert run(str(first), str(second), str(third), "--output", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("| goat |") == 3 and "[fair.json](../results/fair.json)" in text
    pictures = {path.name for path in page.parent.glob("*.png")}
    assert pictures == {"fixed.png", "small.png"}  # one for the two over the same tasks
    assert all(f"]({name})" in text for name in pictures)
    assert "fixed goat" not in text and "fixed full +4.00 (+1.00 to +7.00)" in text  # in words, the largest difference


def test_a_page_keeps_its_own_words_and_gets_its_tables_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stored(made_up(), tmp_path / "mine.json")
    page = tmp_path / "page.md"
    page.write_text(
        "# Mine\n\n<!-- table: mine -->\nold\n<!-- end -->\n\nAfter.\n\n<!-- picture: mine -->\n<!-- end -->\n"
    )
    assert run(str(file), "--into", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\n<!-- table: mine -->\n\n**mine**") and "\nold\n" not in text
    assert (
        "<!-- end -->\n\nAfter.\n" in text and "](mine.png)" in text and (tmp_path / "mine.png").stat().st_size > 5000
    )
    assert run(str(file), "--into", str(page)) == 0
    assert page.read_text(encoding="utf-8") == text
    capsys.readouterr()

    for content, said in (
        ("# Mine\n", "has no line <!-- table: mine -->"),
        ("<!-- table: mine -->\n", "has no line <!-- end -->"),
        ("<!-- table: mine -->\n<!-- table: other -->\n<!-- end -->\n", "has no line <!-- end -->"),
    ):
        page.write_text(content)
        assert run(str(file), "--into", str(page)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and page.read_text() == content


def test_what_does_not_go_together_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(stored(made_up(), tmp_path / "mine.json"))
    twin = str(stored(made_up(), tmp_path / "deeper" / "mine.json"))
    for arguments, said in (
        ((str(tmp_path), file), "is a folder, which is drawn alone"),
        ((str(tmp_path), "--into", "page.md"), "written from files"),
        ((file, "--alignment", "alignment.json"), "leave it out"),
        ((file, "--output", "a.md", "--into", "b.md"), "two places"),
        ((file, twin), "is given twice"),
        ((file, "--into", str(tmp_path / "none.md")), "no such page"),
        ((str(tmp_path / "none.json"),), "no such file or folder"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_rates_are_short() -> None:
    assert [rate_text(rate) for rate in (1e-4, 2.5e-5, 0.003, 1.0)] == ["1e-4", "2.5e-5", "3e-3", "1e0"]


@pytest.mark.skipif(not PAGE.is_file(), reason="docs/evidence.md is not written yet")
def test_the_committed_page_is_what_the_committed_files_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    # In the page's order; a picture stands for the group of its first file.
    names = [name for kind, name in parts(text) if kind == "table"]
    assert names
    summaries = tabled.read_all([ROOT / "results" / f"{name}.json" for name in names])
    assert tabled.filled(text, summaries, PAGE) == text
    for found in re.findall(r"\]\(([\w.-]+\.png)\)", text):
        assert (PAGE.parent / found).is_file()
