"""`goat report FILE.json` of files that somebody changed, or that lost a part."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from comparisons import around, gap, made_up, stored

from goat_peft.errors import UserError
from goat_peft.reporting import suite
from goat_peft.reporting.evidence import table
from goat_peft.reporting.summary import read_summary


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
        (
            lambda data: data["tasks"][1]["rows"][2].update(
                sweep=[{"learning_rate": rate, "value": 0.3, "error": None} for rate in (1e-4, 1e-3, 1e-3)]
            ),
            "goat on cola has learning_rate 0.00025, and its sweep tried 0.0001, 0.001;",
        ),
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
        (put(None, "run_info", "plan", "recipes"), "run_info.plan.recipes"),
        (put(None, "run_info", "plan", "recipes", 0), "run_info.plan.recipes.0"),
        (drop("run_info", "plan", "recipes", 1, "label"), "run_info.plan.recipes.1.Recipe.label"),
        (put("a|b", "run_info", "plan", "recipes", 1, "label"), "run_info.plan.recipes.1.Recipe.label"),
        (put("2", "run_info", "plan", "recipes", 0, "rate_factor"), "run_info.plan.recipes.0.Recipe.rate_factor"),
        (put(None, "run_info", "plan", "recipes", 0, "rate_factor"), "run_info.plan.recipes.0.Recipe.rate_factor"),
        (put(0, "run_info", "plan", "recipes", 0, "rate_factor"), "run_info.plan.recipes.0.Recipe.rate_factor"),
        (put(None, "run_info", "plan", "methods", 0, "options"), "run_info.plan.methods.0.options"),
        (put(["preset"], "run_info", "plan", "methods", 0, "options"), "run_info.plan.methods.0.options"),
        (put("x=1", "run_info", "plan", "methods", 0, "overrides"), "run_info.plan.methods.0.overrides"),
        (put([1], "run_info", "plan", "overrides"), "run_info.plan.overrides.0"),
        (put([None], "run_info", "plan", "recipes", 0, "overrides"), "run_info.plan.recipes.0.Recipe.overrides.0"),
        (put([{"value": 0.5, "error": None}], "tasks", 0, "rows", 1, "sweep"), "tasks.0.rows.1.sweep.0.learning_rate"),
        (put("2", "run_info", "plan", "parallel"), "run_info.plan.parallel"),
        (put(0, "run_info", "plan", "parallel"), "run_info.plan.parallel"),
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
