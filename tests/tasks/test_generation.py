"""What a generation task learns from and how it judges: tokens, filters, references, numbers, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from goat_peft.errors import UserError
from goat_peft.recipes import load_task
from goat_peft.tasks import Kept, Scoring, Task, bind, generation


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task(
    tmp_path: Path, rows: list[dict[str, object]], split: str = "test", source: Any = (), **changes: object
) -> Task:
    block = {
        "type": "generation",
        "data": {split: {"path": str(write_rows(tmp_path / "rows.jsonl", rows)), **dict(source)}},
        "prompt": "{q}",
        "response": "{a}",
        "answer": "{a}",
        "extract": r"#### (\S+)",
        **changes,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(block))
    return bind(load_task(str(tmp_path / "own.yaml")))


def written(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """Let the model write these."""

    def generate_texts(*_: object, indices: list[int], done: Any, **__: object) -> None:
        done(indices, [texts[index] for index in indices])

    monkeypatch.setattr(generation, "generate_texts", generate_texts)


@pytest.fixture
def tokenizer(tiny_llama_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def test_a_failed_extraction_is_counted_and_is_not_the_number_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    own = task(tmp_path, [{"q": "a", "a": "0"}, {"q": "b", "a": "0"}, {"q": "c", "a": "0.0"}], compare="number")
    written(monkeypatch, ["I do not know", "#### none", "#### 0"])
    scores = own.evaluate(None, own.load("test").test, tokenizer, Scoring())
    assert [row["prediction"] for row in scores.predictions] == [None, None, "0"]
    assert scores.metrics == {"exact_match": pytest.approx(1 / 3)} and scores.counts == {"failed_extractions": 2}


def test_rows_that_are_kept_are_judged_no_more_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    own = task(tmp_path, [{"q": "a", "a": "1"}, {"q": "b", "a": "2"}])
    kept = Kept()
    kept.add([{"index": 1, "label": "2", "prediction": None, "correct": False, "text": "kept"}])
    written(monkeypatch, ["#### 1", "never asked for"])
    seen: list[tuple[int, int]] = []
    scores = own.evaluate(None, own.load("test").test, tokenizer, Scoring(8, lambda *at: seen.append(at), kept))
    assert [row["text"] for row in scores.predictions] == ["#### 1", "kept"]
    assert (scores.metrics["exact_match"], scores.counts["failed_extractions"], seen) == (0.5, 1, [(1, 1)])


def test_a_reference_may_be_part_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    rows = [{"q": "a", "a": "He has 3 + 4 = 7.\n#### 1,007"}]
    own = task(tmp_path, rows, answer_pattern=r"####\s*(.+)", compare="number")
    written(monkeypatch, ["so #### 1007.00"])
    (row,) = own.evaluate(None, own.load("test").test, tokenizer, Scoring()).predictions
    assert (row["label"], row["correct"]) == ("1,007", True)


@pytest.mark.parametrize(
    ("answer", "changes", "said"),
    [
        ("7", {"answer_pattern": "####(.+)"}, "task.answer_pattern=####.*: does not match the answer of row 0, '7'"),
        ("seven", {"compare": "number"}, "task.compare=number: the answer of row 0, 'seven', is no number"),
        ("", {}, "task.answer='{a}': row 0"),
    ],
)
def test_a_row_without_a_usable_reference_is_named(
    tmp_path: Path, tokenizer: Any, answer: str, changes: dict, said: str
) -> None:
    own = task(tmp_path, [{"q": "a", "a": answer}], **changes)
    with pytest.raises(UserError, match=said):
        own.evaluate(None, own.load("test").test, tokenizer, Scoring())


@pytest.mark.parametrize(
    ("compare", "ignore_case", "tolerance", "text", "reference", "correct"),
    [
        ("text", True, 0, "#### TRUE", "true", True),
        ("text", False, 0, "#### TRUE", "true", False),
        ("text", True, 0, "#### 7.0", "7", False),
        ("number", True, 0, "#### 7.0", "7", True),
        ("number", True, 1e-6, "#### 0.333333", "0.3333333", True),
        ("number", True, 0, "#### 0.333333", "0.3333333", False),
        ("number", True, 1e-6, "#### $1,234.50.", "1234.5", True),
        ("number", True, 1e-6, "#### 99999999999999999999", "99999999999999999998", False),
    ],
)
def test_answers_are_compared_as_text_or_as_numbers(
    tmp_path: Path, compare: str, ignore_case: bool, tolerance: float, text: str, reference: str, correct: bool
) -> None:
    own = task(tmp_path, [{"q": "a", "a": "1"}], compare=compare, ignore_case=ignore_case, tolerance=tolerance)
    assert own.judge(0, text, reference)["correct"] is correct


def test_the_response_and_the_end_are_learned_and_the_prompt_is_as_when_scored(tmp_path: Path, tokenizer: Any) -> None:
    own = task(tmp_path, [{"q": "the film is", "a": "good fun"}], split="train")
    (row,) = own.prepare(own.load("train").train, tokenizer, "train")
    learned = [i for i, on in zip(row["input_ids"], row["completion_mask"], strict=True) if on]
    prompt = row["input_ids"][: -len(learned)]
    assert prompt == tokenizer("the film is")["input_ids"]
    assert learned == [*tokenizer("good fun")["input_ids"], tokenizer.eos_token_id]


def test_training_rows_that_are_too_long_are_left_out_before_the_limit(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"q": "the film is" + " very" * (index % 4), "a": "good"} for index in range(20)]  # 5 to 8 tokens
    own = task(tmp_path, rows, split="train", source={"max_tokens": 7, "limit": 6})
    prepared = own.prepare(own.load("train").train, tokenizer, "train")
    assert [len(row) for row in prepared["input_ids"]] == [5, 6, 5, 6, 5, 6]


def test_training_rows_that_max_length_cuts_or_empties_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"q": "the film is" + " very" * more, "a": "good"} for more in (0, 1, 2, 2, 3)]  # and an end token each
    sizes = [len(tokenizer(row["q"])["input_ids"]) for row in rows]
    longest = sizes[1] + 1
    own = task(tmp_path, rows, split="train", max_length=longest)
    assert own.train_rows == {}
    prepared = own.prepare(own.load("train").train, tokenizer, "train")
    assert len(prepared) == 2 and own.train_rows == {"train": 2, "cut": 1, "dropped": 3}
    short = task(tmp_path, rows, split="train", max_length=sizes[0])
    with pytest.raises(UserError, match=f"task.max_length={sizes[0]}: the prompt alone fills it in each of the 5"):
        short.prepare(short.load("train").train, tokenizer, "train")


def test_a_task_that_only_tests_cannot_train(tmp_path: Path, tokenizer: Any) -> None:
    own = task(tmp_path, [{"q": "a", "a": "b"}], response=None)
    with pytest.raises(UserError, match="task.response: missing; training needs"):
        own.prepare(own.load("test").test, tokenizer, "train")


@pytest.mark.parametrize("name", ["mawps", "addsub", "singleeq", "multiarith", "svamp"])
def test_an_unrounded_quotient_takes_a_rounded_answer(name: str) -> None:
    own = bind(load_task(name))
    assert own.judge(0, "#### 0.167", "0.16666666666666666")["correct"]
    assert not own.judge(0, "#### 0.17", "0.16666666666666666")["correct"]
    assert own.options.version == 2
