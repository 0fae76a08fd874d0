"""Option likelihoods against a computation that takes one option at a time; and what the options are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft.errors import UserError
from goat_peft.recipes import load_task
from goat_peft.tasks import Scoring, bind
from goat_peft.tasks.likelihood import OptionRow, option_scores


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


LEAD = "the correct answer is "


def row(prompt: str, *options: str) -> OptionRow:
    return OptionRow(prompt, LEAD, list(options), [LEAD + option for option in options])


ROWS = [
    row("question : is the film good ?", "true", "false"),
    row("the", "a very very dull story", "answer1", "good film"),
    row("a very very long question : is this that ? ", "answer1", "answer2"),
    row("one", "love", "hate", "not so bad"),
]


@pytest.fixture(scope="module")
def llama(tiny_llama_dir: Path) -> tuple:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.5)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_llama_dir)


def by_hand(llama: tuple, prompt: str, option: str) -> float:
    """Mean log-probability of the option's words, one forward per word, without padding; a word is a token here."""
    model, tokenizer = llama
    ids, logs = tokenizer(prompt + " " + LEAD)["input_ids"], []
    for token in tokenizer(option)["input_ids"]:
        with torch.no_grad():
            logs.append(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
        ids = [*ids, token]
    return sum(logs) / len(logs)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("keeps_logits", [True, False])
def test_scores_are_those_of_one_option_at_a_time(
    llama: tuple, batch_size: int, keeps_logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goat_peft.tasks.likelihood._keeps_logits", lambda model: keeps_logits)
    found: dict[int, list[float]] = {}
    option_scores(*llama, ROWS, batch_size=batch_size, done=lambda i, scores: found.update(zip(i, scores, strict=True)))
    for index, one in enumerate(ROWS):
        assert found[index] == pytest.approx([by_hand(llama, one.prompt, o) for o in one.options], abs=1e-5)


def test_options_of_a_batch_take_one_forward_pass(llama: tuple) -> None:
    calls = []
    handle = llama[0].register_forward_hook(lambda *_: calls.append(1))
    option_scores(*llama, ROWS, batch_size=100, done=lambda *_: None)
    handle.remove()
    assert len(calls) == 1


def test_only_the_wanted_rows_are_scored(llama: tuple) -> None:
    found: list[int] = []
    option_scores(*llama, ROWS, batch_size=2, done=lambda i, _: found.extend(i), indices=[3, 1])
    assert sorted(found) == [1, 3]


def test_an_option_that_adds_nothing_is_an_error(llama: tuple) -> None:
    with pytest.raises(UserError, match="adds nothing"):
        option_scores(*llama, [OptionRow("the", LEAD, [""], [LEAD])], batch_size=2, done=lambda *_: None)


def task(tmp_path: Path, rows: list[dict[str, object]], **changes: object):
    """A generation task scored by likelihood over local rows."""
    block = {
        "type": "generation",
        "data": {"test": {"path": str(write_rows(tmp_path / "rows.jsonl", rows))}},
        "prompt": "{q} ### Response : ",
        "answer": "{a}",
        "score": "likelihood",
        "options_pattern": r"format : (\S+)",
        "option_response": "the correct answer is {option}",
        **changes,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(block))
    return bind(load_task(str(tmp_path / "own.yaml")))


QUESTIONS = [
    {"q": "is it good ? format : true/false", "a": "false", "x": "good"},
    {"q": "is the plot dull ? format : answer1/answer2/true", "a": "Answer2", "x": "bad"},
]


def test_a_task_takes_the_likeliest_of_the_prompt_s_options(llama: tuple, tmp_path: Path) -> None:
    own = task(tmp_path, QUESTIONS)
    scores = own.evaluate(llama[0], own.load("test").test, llama[1], Scoring(batch_size=2))
    expected = [["true", "false"], ["answer1", "answer2", "true"]]
    for found, options, row in zip(scores.predictions, expected, QUESTIONS, strict=True):
        assert list(found["scores"]) == options
        assert found["prediction"] == max(options, key=lambda o: by_hand(llama, f"{row['q']} ### Response :", o))
        assert found["correct"] == (found["prediction"] == row["a"].casefold())
    share = sum(row["correct"] for row in scores.predictions) / 2
    assert scores.metrics == {"likelihood_accuracy": share} and own.main_metric == "likelihood_accuracy"


def test_options_may_be_listed_as_templates(llama: tuple, tmp_path: Path) -> None:
    rows = [{**row, "a": row["x"]} for row in QUESTIONS]
    own = task(tmp_path, rows, options=["{x}", "hate"], options_pattern=None)
    found = own.evaluate(llama[0], own.load("test").test, llama[1], Scoring()).predictions
    assert [list(row["scores"]) for row in found] == [["good", "hate"], ["bad", "hate"]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"q": "is it good ?", "a": "true"}], "task.options_pattern=.*row 0"),
        (
            [QUESTIONS[0], {"q": "format : true/false", "a": "maybe"}],
            "row 1 chooses from true, false, and its answer 'maybe'",
        ),
    ],
)
def test_a_row_without_usable_options_is_named(llama: tuple, tmp_path: Path, rows: list, said: str) -> None:
    own = task(tmp_path, rows)
    with pytest.raises(UserError, match=said):
        own.evaluate(llama[0], own.load("test").test, llama[1], Scoring())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options_pattern": None}, "task.score=likelihood: needs options or options_pattern"),
        ({"options": ["a"]}, "task.score=likelihood: needs options or options_pattern, one of the two"),
        ({"option_response": "it is"}, "task.option_response=it is: has to name the option"),
        ({"options_pattern": "("}, r"task.options_pattern=\(: not a regular expression"),
        ({"score": "generate"}, r"task.extract=\[\]: score=generate needs"),
        ({"score": "generate", "extract": ["a", "("]}, r"task.extract.1.pattern=\(: not a regular expression"),
    ],
)
def test_settings_that_cannot_score_are_refused(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(tmp_path, QUESTIONS, **changes)
