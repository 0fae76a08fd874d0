"""Answers found in what a real model wrote, and numbers as people write them.

`answers.jsonl` holds greedy texts of SmolLM2-135M-Instruct, not fine-tuned, for the first test rows of eight tasks, with
the answer that a reader finds in each by the task's rules; null where there is none.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from goat_peft.recipes import load_task
from goat_peft.tasks import bind
from goat_peft.tasks.answers import Extraction, as_number, find, same_number

TABLE = [
    json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("row", TABLE, ids=[f"{row['task']} {row['row']}" for row in TABLE])
def test_what_a_real_model_wrote(row: dict) -> None:
    task = bind(load_task(row["task"]))
    assert task.extract(row["text"]) == row["answer"]
    judged = task.judge(row["row"], row["text"], "0" if task.options.compare == "number" else "nothing")
    assert judged["correct"] is (row["answer"] == "0")


def test_the_table_holds_failures_of_every_task() -> None:
    tasks = {row["task"] for row in TABLE}
    assert len(tasks) == 8
    for task in tasks:
        answers = [row["answer"] for row in TABLE if row["task"] == task]
        assert None in answers and any(answers)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        ("-3.50", "-3.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("$1,234.50.", "1234.5"),
        ("1,234,567", "1234567"),
        ("25%", "25"),
        ("\N{MINUS SIGN}4", "-4"),
        ("+2", "2"),
        ("0", "0"),
        ("", None),
        ("none", None),
        ("-", None),
        (".", None),
        ("$", None),
        ("1,2", None),
        ("12,34", None),
        ("1/2", None),
        ("3 4", None),
        ("1e5", None),
        ("7 apples", None),
        ("\N{ARABIC-INDIC DIGIT THREE}", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: str | None) -> None:
    assert as_number(text) == (None if number is None else Decimal(number))


def test_numbers_within_the_tolerance_are_the_same() -> None:
    assert same_number(Decimal("1.0"), Decimal("1.05"), 0.05) and not same_number(Decimal("1.0"), Decimal("1.06"), 0.05)
    assert same_number(Decimal("0.1") + Decimal("0.2"), Decimal("0.3"), 0)


@pytest.mark.parametrize(
    ("ways", "text", "answer"),
    [
        ([("####(.*)", "first"), (r"\d+", "last")], "1 2 #### 3 and 4", "3 and 4"),
        ([("####(.*)", "first"), (r"\d+", "last")], "1 2 and 4", "4"),
        ([(r"\d+", "first")], "1 2 and 4", "1"),
        ([("ANSWER", "first")], "the answer", None),
        ([("####(.*)", "first")], "####   ", None),
        ([("a(b)?c", "first")], "ac", None),
    ],
)
def test_ways_are_tried_in_order(ways: list[tuple[str, str]], text: str, answer: str | None) -> None:
    assert find(text, [Extraction(pattern=pattern, which=which) for pattern, which in ways]) == answer


def test_case_counts_only_when_asked() -> None:
    assert find("TRUE", [Extraction(pattern="true")], ignore_case=True) == "TRUE"
    assert find("TRUE", [Extraction(pattern="true")]) is None
