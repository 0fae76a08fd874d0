"""`goat report FILE.json`: tables whose every figure can be worked out by hand, and pages that hold them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.reporting import suite, tabled
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


WIDTHS = {  # how far an interval reaches below and above the difference of two averages; a point where nothing is said
    ("full", "lora"): (0.03, 0.03),
    ("full", "goat"): (0.025, 0.025),
    ("goat", "lora"): (0.015, 0.015),
}


def around(difference: float, below: float = 0.01, above: float = 0.01) -> dict[str, float | None]:
    return gap(difference, difference - below, difference + above)


def made_up(names: tuple[str, ...] = ("rte", "cola")) -> dict[str, Any]:
    """Four methods, two tasks, two seeds, two learning rates."""
    labels = list(VALUES["rte"])
    mean = {(t, label): sum(VALUES[t][label]) / 2 for t in names for label in labels}
    average = {label: sum(mean[t, label] for t in names) / len(names) for label in labels}

    def row(task: str, label: str) -> dict[str, Any]:
        first, second = VALUES[task][label]
        over = "seeds and examples" if task == "rte" else "seeds"
        return {
            "label": label,
            "method": label.removesuffix("-2"),
            "learning_rate": 1e-5 if label == "full" else 2.5e-4,
            "sweep": [],
            "test": [{"seed": 3 + i, "value": v, "error": None} for i, v in enumerate((first, second))],
            "mean": mean[task, label],
            "sd": abs(first - second) / 2**0.5,
            "parameters": 22_000_000 if label == "full" else (400_000 if task == "rte" else 1_200_000),
            "train_time": 10.0 if task == "rte" else 31.0,
            "paired_over": None if label == "lora" else over,
            **(gap(None) if label == "lora" else around(mean[task, label] - mean[task, "lora"])),
        }

    def pair(one: str, other: str) -> dict[str, float | None]:
        below, above = WIDTHS.get((one, other)) or WIDTHS.get((other, one), (0.01, 0.01))[::-1]
        return around(average[one] - average[other], below, above)

    metrics = {"rte": "accuracy", "cola": "matthews"}
    tasks = [
        {"name": t, "metric": metrics[t], "split": "test", "freedom": 1, "rows": [row(t, label) for label in labels]}
        for t in names
    ]
    against = {label: {other: pair(label, other) for other in labels if other != label} for label in labels}
    overall = [
        {
            "label": label,
            "mean": average[label],
            "mean_rank": 2.0,
            **against[label].get("lora", gap(None)),
            "against": against[label],
        }
        for label in labels
    ]
    methods = [
        {"label": label, "learning_rates": [1e-5, 3e-5] if label == "full" else [1e-4, 2.5e-4]} for label in labels
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


def unranked(data: dict[str, Any], *labels: str) -> None:
    """Take the averages of methods out, and with them all differences to them."""
    for row in data["overall"]:
        if row["label"] in labels:
            row |= {"mean": None, "mean_rank": None, "against": {}, **gap(None)}
        row["against"] = {other: found for other, found in row["against"].items() if other not in labels}


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
    assert "less lora, the best of the other methods but full: +3.50 (+2.00 to +5.00); less full: -0.50" in best
    assert best.endswith(
        "Picked by these averages, which the intervals leave out of account: the best of the candidates."
    )
    assert "widened for few seeds by Student's t with 2 degrees of freedom" in caption


def test_a_failed_or_missing_run_leaves_no_average(tmp_path: Path) -> None:
    data = made_up()
    rte, cola = data["tasks"]
    failed = next(row for row in rte["rows"] if row["label"] == "goat-2")
    failed["test"][1] |= {"value": None, "error": "the loss is nan"}
    failed |= {"mean": None, "sd": None, **gap(None)}
    cola["rows"][2]["sweep"] = [{"value": 0.3, "error": None}, {"value": None, "error": "the loss is nan"}]
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


def test_a_mean_that_is_not_its_runs_is_refused(tmp_path: Path) -> None:
    data = made_up()
    data["tasks"][0]["rows"][2]["mean"] = 0.7
    with pytest.raises(UserError, match="goat on rte has mean 0.7, and the figures beside it say 0.63"):
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["tasks"][0]["rows"][2].update(sd=0.01), "goat on rte has sd 0.01"),
        (lambda data: data["tasks"][0]["rows"][2].update(around(0.06)), "goat on rte has difference 0.06"),
        (lambda data: data["tasks"][0]["rows"][2].update(gap(None)), "goat on rte has difference None"),
        (lambda data: data["tasks"][0]["rows"][1].update(around(0.0)), "lora on rte has difference 0.0"),
        (lambda data: data["tasks"][1]["rows"][2].update(low=0.03), "goat on cola: low 0.03 and high"),
        (lambda data: data["overall"][2].update(around(0.04)), "the average of goat has difference 0.04"),
        (lambda data: data["overall"][2].update(high=0.03), "the average of goat: low 0.02"),
        (lambda data: data["overall"][2].update(low=None), "the average of goat: low None"),
        (lambda data: data["overall"][0]["against"].update(goat=around(0.1)), "full against goat has difference 0.1"),
        (lambda data: data["overall"][0]["against"]["goat"].update(low=0.01), "full against goat: low 0.01"),
        (lambda data: data["overall"][0]["against"].pop("goat"), "the average of full: against lacks goat"),
    ],
)
def test_a_figure_that_does_not_follow_is_refused_by_file_method_and_field(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    data = made_up()
    change(data)
    with pytest.raises(UserError) as error:
        read_summary(stored(data, tmp_path / "mine.json"))
    assert said in str(error.value) and "mine.json" in str(error.value) and "\n" not in str(error.value)


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    return lambda data: place(data, path[:-1]).pop(path[-1])


def put(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    return lambda data: place(data, path[:-1]).__setitem__(path[-1], value)


def place(data: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        data = data[step]
    return data


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (drop("run_info", "plan", "methods"), "run_info.plan.methods"),
        (drop("tasks", 0, "rows", 1, "sd"), "tasks.0.rows.1.sd"),
        (drop("tasks", 0, "rows", 1, "sweep"), "tasks.0.rows.1.sweep"),
        (drop("tasks", 0, "rows", 1, "train_time"), "tasks.0.rows.1.train_time"),
        (put(None, "tasks", 0, "rows", 1, "train_time"), "has a mean, and no train_time"),
        (drop("meta_info", "package_info"), "meta_info.package_info"),
        (put(None, "run_info", "plan", "common"), "run_info.plan.common"),
        (put("0.58", "tasks", 0, "rows", 1, "test", 0, "value"), "tasks.0.rows.1.test.0.value"),
        (put(float("nan"), "tasks", 0, "rows", 1, "mean"), "tasks.0.rows.1.mean"),
        (put("lora", "tasks", 0, "rows", 0, "label"), "rows: has lora twice"),
        (put("rte", "tasks", 1, "name"), "tasks: has rte twice"),
        (put(5, "run_info", "ran_on", 0, "torch-version"), "run_info.ran_on.0.torch-version"),
        (put("none", "run_info", "plan", "baseline"), "lacks the baseline none"),
        (drop("overall", 0), "overall: lacks full"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_field(
    damage: Callable[[dict[str, Any]], None], field: str, tmp_path: Path
) -> None:
    data = made_up()
    damage(data)
    with pytest.raises(UserError) as error:
        read_summary(stored(data, tmp_path / "mine.json"))
    assert field in str(error.value) and "mine.json" in str(error.value) and "\n" not in str(error.value)


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a file that may be damaged."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(data[key], (*path, key))


def test_no_damage_ends_in_a_traceback(tmp_path: Path) -> None:
    draw = random.Random(0)
    sound = json.dumps(made_up())
    refused = 0
    for _ in range(300):
        data = json.loads(sound)
        path = draw.choice(list(places(data)))
        drop(*path)(data)
        if draw.random() < 0.7 and isinstance(path[-1], str):
            put(draw.choice([None, "", "0.5", "a|b", 7, -1.5, 10**400, True, [], {}, [None], {"a": None}]), *path)(data)
        try:
            summary = read_summary(stored(data, tmp_path / "mine.json"))
        except UserError as error:
            assert str(error).startswith(f"file={tmp_path}/mine.json: ") and "\n" not in str(error)
            refused += 1
        else:
            table(summary), suite.alt([summary])
    assert refused > 150


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
        (("seeds", "seeds"), 4, "bootstrap over seeds alone; widened for few seeds by Student's t with 8 degrees"),
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
    third = stored(made_up(("rte",)), tmp_path / "results" / "small.json")
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


def test_a_marker_is_a_whole_line_outside_of_code_and_stands_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(stored(made_up(), tmp_path / "mine.json"))
    page = tmp_path / "page.md"
    example = (
        "````md\n```\n<!-- table: mine -->\nstays\n<!-- end -->\n````\n\n    <!-- table: mine -->\n    <!-- end -->\n"
    )
    page.write_text(
        example + "Say <!-- table: mine -->\n\n<!-- table: mine -->\nstale <!-- end -->\n<!-- end -->\nAfter.\n"
    )
    assert run(file, "--into", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(example + "Say <!-- table: mine -->\n\n<!-- table: mine -->\n\n**mine**")
    assert text.endswith("\n\n<!-- end -->\nAfter.\n") and "stale" not in text and text.count("**mine**") == 1
    assert not list(tmp_path.rglob("*.png"))  # the page shows none
    capsys.readouterr()
    part = "<!-- table: mine -->\n<!-- end -->\n"
    picture = "<!-- picture: mine -->\n<!-- end -->\n"
    for content, said in (
        (part + part, "has the line <!-- table: mine --> 2 times"),
        (part + picture + picture, "has the line <!-- picture: mine --> 2 times"),
        (example, "has no line <!-- table: mine -->"),
    ):
        page.write_text(content)
        assert run(file, "--into", str(page)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and page.read_text() == content
        assert not list(tmp_path.rglob("*.png"))


def test_a_picture_has_any_name_of_its_group(tmp_path: Path) -> None:
    files = [str(stored(made_up(), tmp_path / "results" / f"{name}.json")) for name in ("fixed", "fair")]
    page = tmp_path / "page.md"
    tables = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("fixed", "fair"))
    page.write_text(tables + "<!-- picture: fair -->\nold\n<!-- end -->\n")
    assert run(*files, "--into", str(page)) == 0
    assert "](fair.png)" in page.read_text(encoding="utf-8") and "\nold\n" not in page.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["fair.png"]


def test_no_source_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_page, as_picture = stored(made_up(), tmp_path / "mine.md"), stored(made_up(), tmp_path / "mine.png")
    plain = stored(made_up(), tmp_path / "plain.json")
    link = tmp_path / "link.md"
    link.symlink_to(plain)
    before = {path: path.read_bytes() for path in (as_page, as_picture, plain)}
    for source, option, page in (
        (as_page, "--output", as_page),
        (as_page, "--into", as_page),
        (plain, "--output", plain),
        (plain, "--into", plain),
        (plain, "--output", link),
        (as_picture, "--output", tmp_path / "page.md"),
    ):
        assert run(str(source), option, str(page)) == 2
        error = capsys.readouterr().err
        assert f"{option[2:]}={page}" in error and error.count("\n") == 1
        assert {path: path.read_bytes() for path in before} == before


def test_what_does_not_go_together_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(stored(made_up(), tmp_path / "mine.json"))
    twin = str(stored(made_up(), tmp_path / "deeper" / "mine.json"))
    latin, folder = tmp_path / "latin.md", tmp_path / "folder.md"
    latin.write_bytes("<!-- table: mine -->\né\n<!-- end -->\n".encode("latin-1"))
    folder.mkdir()
    for arguments, said in (
        ((str(tmp_path), file), "is a folder, which is drawn alone"),
        ((str(tmp_path), "--into", "page.md"), "written from files"),
        ((file, "--alignment", "alignment.json"), "leave it out"),
        ((file, "--output", "a.md", "--into", "b.md"), "two places"),
        ((file, twin), "is given twice"),
        ((file, "--into", str(tmp_path / "none.md")), "no such page"),
        ((file, "--into", str(tmp_path)), "no such page"),
        ((file, "--into", str(latin)), "is no text in UTF-8"),
        ((file, "--output", "."), "ends in .md"),
        ((file, "--output", str(tmp_path / "page.html")), "ends in .md"),
        ((file, "--output", str(folder)), "ends in .md"),
        ((file, "--output", str(latin / "page.md")), "in which no page can be"),
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
