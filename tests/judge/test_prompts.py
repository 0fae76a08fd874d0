"""FastChat's protocol: which prompt grades what, what it says, and which number is the rating."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest
from answer_files import record, write

from goat_peft import judge
from goat_peft.errors import UserError
from goat_peft.judge import prompts

SHARED = Path(__file__).parents[3] / "shared/data/chat/mt_bench"


def test_the_prompts_are_fastchat_s_to_the_letter() -> None:
    texts = json.loads((resources.files(judge) / "prompts.json").read_text(encoding="utf-8"))
    assert texts["licence"] == "Apache-2.0" and "FastChat" in texts["source"]
    digests = {
        name: hashlib.sha256((p["system"] + p["user"]).encode()).hexdigest()[:12]
        for name, p in texts["prompts"].items()
    }
    # Of the file at the commit that `source` names.
    assert digests == {
        "single-v1": "af99f16e3a72",
        "single-math-v1": "02dc87ce306b",
        "single-v1-multi-turn": "3157be86ff5b",
        "single-math-v1-multi-turn": "89deb10e74f2",
    }


@pytest.mark.parametrize(
    ("category", "turn", "name", "needs_reference"),
    [
        ("writing", 1, "single-v1", False),
        ("humanities", 2, "single-v1-multi-turn", False),
        ("math", 1, "single-math-v1", True),
        ("reasoning", 1, "single-math-v1", True),
        ("coding", 2, "single-math-v1-multi-turn", True),
    ],
)
def test_the_category_and_turn_choose_the_prompt(category: str, turn: int, name: str, needs_reference: bool) -> None:
    prompt = prompts.choose(category, turn)
    assert prompt.name == name
    system, user = prompt.messages(["Q {1}", "Q2"][:turn], ["A }{", "A2"][:turn], ["R1", "R2"][:turn])
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Q {1}" in user["content"] and "A }{" in user["content"]
    assert ("R1" in user["content"]) == needs_reference
    assert ("A2" in user["content"]) == (turn == 2)
    assert "{question" not in user["content"] and "{answer" not in user["content"]


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Fine. Rating: [[7]]", 7.0),
        ("Rating: [[8.5]], as I said [[2]]", 8.5),
        ("Rating: [6]", 6.0),
        ("See [3] for why. Rating: [[9]]", 9.0),
        ("Rating: [[10]]", 10.0),
        ("Rating: 7", None),
        ("Rating: [[seven]]", None),
        ("Rating: [[85]]", None),
        ("Rating: [[0]]", None),
        ("Rating: [[-3]]", None),
        ("Rating: [[5/10]]", None),
        ("", None),
    ],
)
def test_rating(reply: str, rating: float | None) -> None:
    assert prompts.rating(reply) == rating


def test_items_change_with_whatever_the_judge_reads(bench: Path) -> None:
    def keys(name: str = "gpt-4", turns: tuple[int, ...] = (1,)) -> dict[tuple[int, int], str]:
        files = judge.find_files(bench, None, None)
        return {
            (item.question_id, item.turn): item.key for item in judge.read_items(files, list(turns), {"model": name})
        }

    first = keys()
    assert len(set(first.values())) == 6
    both = keys(turns=(1, 2))
    assert len(both) == 12 and {place: both[place] for place in first} == first
    assert not set(keys("other").values()) & set(first.values())
    answers = bench / "fastchat/model_answer/tiny.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    rows[2]["choices"][0]["turns"][0] = "Another answer."
    write(answers, rows)
    assert {place for place, key in keys().items() if key != first[place]} == {(83, 1)}


def test_answers_of_a_named_test_are_found_too(bench: Path, tmp_path: Path) -> None:
    (bench / "tests/mt-bench").mkdir(parents=True)
    (bench / "fastchat").rename(bench / "tests/mt-bench/fastchat")
    files = judge.find_files(bench, None, None)
    assert files.model == "tiny" and files.questions.is_file() and files.references is not None
    write(bench / "tests/other/fastchat/model_answer/tiny.jsonl", [record(1, "m", ["x"])])
    with pytest.raises(UserError, match="2 answer files"):
        judge.find_files(bench, None, None)


def test_inputs_that_cannot_be_graded_are_named(bench: Path, tmp_path: Path) -> None:
    def read(folder: Path = bench, turns: tuple[int, ...] = (1,), **others: Path) -> None:
        files = judge.find_files(folder, others.get("questions"), others.get("references"))
        judge.read_items(files, list(turns), {})

    with pytest.raises(UserError, match="0 answer files in fastchat/model_answer"):
        read(tmp_path)
    with pytest.raises(UserError, match="--questions=.*absent.jsonl: no such file"):
        read(questions=tmp_path / "absent.jsonl")
    lone = tmp_path / "lone"
    write(lone / "fastchat/question.jsonl", [{"question_id": 1, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"]}])
    answers = lone / "fastchat/model_answer/m.jsonl"
    write(answers, [record(1, "m", ["2"])])
    with pytest.raises(UserError, match=r"question 1 \(math\) is graded against a reference"):
        read(lone)
    with pytest.raises(UserError, match="answers turn 1 of question 1 only"):
        read(lone, (1, 2), references=answers)
    write(answers, [record(2, "m", ["2"])])
    with pytest.raises(UserError, match="has no answer to question 1"):
        read(lone)
    write(answers, [{"question_id": 1, "choices": []}])
    with pytest.raises(UserError, match="question 1 has no choices"):
        read(lone)
    answers.write_text("{not json}\n")
    with pytest.raises(UserError, match="cannot be read as JSON lines"):
        read(lone)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs MT-Bench's questions in ../shared/data")
def test_the_eighty_questions_with_their_references(tmp_path: Path) -> None:
    answers = tmp_path / "gpt-4.jsonl"
    write(answers, [record(number, "m", ["first", "second"]) for number in range(81, 161)])
    files = judge.find_files(answers, SHARED / "question.jsonl.gz", SHARED / "reference_answer_gpt4.jsonl.gz")
    items = judge.read_items(files, [1, 2], {"model": "gpt-4"})
    assert len(items) == 160
    graded_with = [item.category for item in items if "math" in item.prompt]
    assert len(graded_with) == 60 and set(graded_with) == {"math", "reasoning", "coding"}
