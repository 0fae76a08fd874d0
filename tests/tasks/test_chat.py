"""Chat: the answers are what FastChat's judge reads, each made once, the second turn a continuation of the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft.errors import UserError
from goat_peft.recipes import check
from goat_peft.tasks import Kept, Scores, Scoring, bind, chat

CATEGORIES = ["writing", "math", "stem", "other"]
QUESTIONS = [
    {"question_id": 81 + i, "category": category, "turns": [f"is film {i} good ?", f"and the fun of {i} ?"]}
    for i, category in enumerate(CATEGORIES)
]
Script = Callable[[str], str]


def task(**options: Any) -> chat.Chat:
    """The task, with short templates."""
    given = {
        "data": {"train": {"path": "none.jsonl"}},
        "prompt": "Q {instruction} A",
        "response": "{output}",
        "next_turn": " Q {instruction} A",
        "max_new_tokens": 8,
        **options,
    }
    return bind(chat.ChatOptions.model_validate(given))


class FakeModel:
    """Stands for a model where `generate_texts` is replaced."""

    class config:
        _name_or_path = "org/Tiny Model"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces generation by an answer that repeats its prompt; every prompt is noted."""
    calls: list[dict[str, Any]] = []

    def generate(model: Any, tokenizer: Any, prompts: list[str], *, indices: list[int], done: Any, **rest: Any) -> None:
        for index in indices:
            calls.append({"index": index, "prompt": prompts[index], **rest})
            done([index], [f" <{prompts[index]}> "])

    monkeypatch.setattr(chat, "generate_texts", generate)
    return calls


class Marks:
    """A tokenizer's end mark."""

    eos_token = "[SEP]"


def evaluate(options: chat.Chat, scoring: Scoring | None = None, rows: list[dict] = QUESTIONS) -> Scores:
    return options.evaluate(FakeModel(), Dataset.from_list(rows), Marks(), scoring or Scoring())


def load_as_fastchat(text: str) -> dict[int, dict]:
    """Answers by question, as FastChat reads them: every line is JSON with a question_id."""
    return {json.loads(line)["question_id"]: json.loads(line) for line in text.splitlines()}


def test_answers_are_in_fastchat_s_format(asked: list[dict]) -> None:
    scores = evaluate(task())
    assert list(scores.files) == ["fastchat/question.jsonl", "fastchat/model_answer/Tiny-Model.jsonl"]
    answers = load_as_fastchat(scores.files["fastchat/model_answer/Tiny-Model.jsonl"])
    assert list(answers) == [81, 82, 83, 84]
    for number, row in answers.items():
        assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert row["model_id"] == "Tiny-Model" and row["tstamp"] > 0
        assert row["choices"] == [{"index": 0, "turns": [f"<Q is film {number - 81} good ? A>"]}]
    assert len({row["answer_id"] for row in answers.values()}) == 4
    assert [json.loads(line) for line in scores.files["fastchat/question.jsonl"].splitlines()] == QUESTIONS
    assert scores.metrics == {"answered": 1.0} and chat.Chat.main_metric == "answered"
    assert scores.counts == {"answers": 4, "empty_answers": 0, "mean_answer_words": 7}
    assert "goat judge" in scores.note
    assert all(call["sampling"] is None for call in asked)


def test_the_second_turn_continues_the_first(asked: list[dict]) -> None:
    scores = evaluate(task(turns=2))
    assert len(asked) == 8
    first = "<Q is film 1 good ? A>"
    assert asked[5]["prompt"] == f"Q is film 1 good ? A{first}[SEP] Q and the fun of 1 ? A"
    answers = load_as_fastchat(next(reversed(scores.files.values())))
    assert answers[82]["choices"][0]["turns"] == [first, f"<{asked[5]['prompt']}>"]
    assert scores.counts["answers"] == 8


def test_a_question_of_one_turn_is_answered_once(asked: list[dict]) -> None:
    rows = [{**QUESTIONS[0], "turns": ["alone ?"]}, QUESTIONS[1]]
    scores = evaluate(task(turns=2), rows=rows)
    assert [len(row["answers"]) for row in scores.predictions] == [1, 2]
    assert [call["index"] for call in asked] == [0, 1, 3]


def test_fastchat_s_temperatures(asked: list[dict]) -> None:
    evaluate(task(temperatures="fastchat", seed=5))
    found = {call["index"]: call["sampling"] for call in asked}
    assert found[1] is None
    assert [found[i].temperature for i in (0, 2, 3)] == [0.7, 0.1, 0.7]
    assert found[0].seed == 5 and found[0].top_p == 1.0


def test_an_empty_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any, indices: list[int], done: Any, **rest: Any) -> None:
        done(indices, ["text", "  ", "", "more text"])

    monkeypatch.setattr(chat, "generate_texts", generate)
    scores = evaluate(task())
    assert scores.metrics == {"answered": 0.5} and scores.counts["empty_answers"] == 2


def test_a_killed_evaluation_goes_on_where_it_was(asked: list[dict], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 8 - len(before)
        if done == 5:
            raise Killed

    before: list[dict] = []
    whole = evaluate(task(turns=2))
    asked.clear()
    with pytest.raises(Killed):
        evaluate(task(turns=2), Scoring(progress=stop, kept=Kept(tmp_path / "kept.jsonl", "k")))
    assert [call["index"] for call in asked] == [0, 1, 2, 3, 4]
    before = list(asked)
    asked.clear()
    scores = evaluate(task(turns=2), Scoring(progress=lambda d, t: None, kept=Kept(tmp_path / "kept.jsonl", "k")))
    assert [call["index"] for call in asked] == [5, 6, 7]
    assert scores.predictions == whole.predictions and scores.counts == whole.counts


def test_a_real_model_answers_alike_in_every_batch(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    options = task(turns=2, stop=["and the"], model_id="named")
    rows = Dataset.from_list(QUESTIONS)
    found = [options.evaluate(model, rows, tokenizer, Scoring(batch_size=size)) for size in (1, 3)]
    assert found[0].predictions == found[1].predictions
    assert "fastchat/model_answer/named.jsonl" in found[0].files
    texts = [text for row in found[0].predictions for text in row["answers"]]
    assert any(texts) and not any("and the" in text for text in texts)


def test_training_reads_prompt_and_response(tiny_llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    rows = Dataset.from_list([{"instruction": "is the film good ?", "output": "the answer is true"}])
    example = task(prompt="Q {instruction} A ").prepare(rows, tokenizer, "train")[0]
    learned = [t for t, mask in zip(example["input_ids"], example["completion_mask"], strict=True) if mask]
    assert tokenizer.decode(learned) == "the answer is true [SEP]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "{instruction} {input}"}, "task.prompt.*must name one column"),
        ({"prompt": "none"}, "task.prompt.*must name one column"),
        ({"turns": 2, "next_turn": "{question}"}, "next_turn must name the column of prompt"),
        ({"turns": 3}, "task.turns=3"),
        ({"model_id": "a/b"}, "task.model_id=a/b"),
        ({"stop": [""]}, "task.stop.*an empty text would end every answer"),
    ],
)
def test_options_that_cannot_work(generate: dict, options: dict, said: str) -> None:
    given = {"type": "chat", "prompt": "{instruction}", "response": "{output}", "data": generate["task"]["data"]}
    with pytest.raises(UserError, match=said):
        check({**generate, "task": {**given, **options}})


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "x"}], "no such column"),
        ([{**QUESTIONS[0], "turns": []}], "row 0 has turns"),
        ([{**QUESTIONS[0], "turns": [" "]}], "row 0 has turns"),
        ([QUESTIONS[0], QUESTIONS[0]], "same question_id"),
    ],
)
def test_questions_that_cannot_be_asked(rows: list[dict], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(task(), rows=rows)
