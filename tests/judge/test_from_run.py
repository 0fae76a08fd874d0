"""From a recipe to a score: a chat run is trained, answers, and is judged from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answer_files import record, write
from fake_judge import Act, FakeJudge

from goat_peft import recipes
from goat_peft.cli import main
from goat_peft.training import train


def test_a_run_is_judged_from_its_folder(generate: dict, questions: Path, tmp_path: Path, key: str) -> None:
    asked = [
        {"question_id": 81, "category": "writing", "turns": ["is the film good ?", "and the fun ?"]},
        {"question_id": 111, "category": "math", "turns": ["is one one ?", "and two ?"]},
    ]
    write(tmp_path / "question.jsonl", asked)
    write(tmp_path / "gpt-4.jsonl", [record(111, "gpt-4", ["yes", "no"])])
    generate["task"] = {
        "type": "chat",
        "data": {"train": {"path": str(questions)}, "test": {"path": str(tmp_path / "question.jsonl")}},
        "prompt": "{instruction} ### Response : ",
        "response": "{output}",
        "next_turn": " {instruction} ### Response : ",
        "turns": 2,
        "max_new_tokens": 8,
    }
    run = train(recipes.check(generate))
    final = run.result["train_info"]["metrics"][-1]
    assert final["test answered"] == 1.0 and final["test answers"] == 4
    [answers] = (run.path / "fastchat/model_answer").glob("*.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [81, 111]
    with FakeJudge(lambda body, before: Act(text="Rating: [[3]]")) as server:
        place = [str(run.path), "--model", "gpt-4", "--endpoint", server.url, "--turns", "both"]
        with pytest.raises(SystemExit) as stop:
            main(["judge", *place, "--references", str(tmp_path / "gpt-4.jsonl")])
        assert stop.value.code == 0
        sent = [body["messages"][1]["content"] for body in server.requests]
    assert len(sent) == 4
    for row in rows:
        assert any(row["choices"][0]["turns"][1] in text for text in sent)
    result = json.loads((run.path / "judge/gpt-4/judge.json").read_text())
    assert result["judge_info"]["score"] == 3.0 and result["run_info"]["model"] == answers.stem
