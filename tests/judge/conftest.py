"""Questions, answers and a judge to grade them."""

from __future__ import annotations

from pathlib import Path

import pytest
from answer_files import read, record, write
from fake_judge import KEY

from goat_peft import judge


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A chat run's folder in FastChat's layout: six questions of three categories, answered in both turns."""
    folder = tmp_path / "run"
    questions, answers, references = [], [], []
    for number, category in enumerate(["writing", "writing", "math", "math", "roleplay", "roleplay"], start=81):
        turns = [f"Question {number}?", f"And {{further}} {number}?"]
        questions.append({"question_id": number, "category": category, "turns": turns})
        answers.append(record(number, "tiny", [f"Answer {number}.", f"More of {number}."]))
        if category == "math":
            references.append(record(number, "gpt-4", [f"Truth {number}.", f"Whole truth {number}."]))
    write(folder / "fastchat/question.jsonl", questions)
    write(folder / "fastchat/model_answer/tiny.jsonl", answers)
    write(folder / "fastchat/reference_answer/gpt-4.jsonl", references)
    return folder


@pytest.fixture
def items(bench: Path) -> list[judge.Item]:
    """The first turns, for a judge named gpt-4."""
    return read(bench)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key, in the variable that `goat judge` reads."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY
