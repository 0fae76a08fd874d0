"""Talking to a run: what the model reads turn by turn, and how an answer ends."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import untrained_run

from goat_peft.cli import main
from goat_peft.view import Conversation, Opened, open_run

CHATML = "{% for m in messages %}question {{ m.role }} : {{ m.content }} ! {% endfor %}{% if add_generation_prompt %}answer : {% endif %}"


@pytest.fixture(scope="module")
def generation_run(tiny_llama_dir: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny language model."""
    recipe = {
        "name": "tiny-generation",
        "model": {"name": str(tiny_llama_dir), "dtype": "float32"},
        "task": {
            "type": "generation",
            "data": {"train": {"path": str(questions)}, "test": {"path": str(questions), "limit": 4}},
            "prompt": "{instruction} ### Response : ",
            "response": "{output}",
            "answer": "{answer}",
            "extract": "true|false",
            "max_length": 48,
            "max_new_tokens": 2,
        },
        "method": {"name": "goat", "r": 8, "num_experts": 4},
    }
    return untrained_run(recipe, tmp_path_factory.mktemp("runs") / "generation")


@pytest.fixture
def opened(generation_run: Path) -> Opened:
    return open_run(generation_run, [])


@pytest.fixture
def read(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model has read, one text a turn."""
    seen: list[str] = []
    generate = opened.model.generate

    def watched(**arguments: object) -> torch.Tensor:
        seen.append(opened.processor.decode(arguments["input_ids"][0]))
        return generate(**arguments)

    monkeypatch.setattr(opened.model, "generate", watched)
    return seen


def greedy(opened: Opened, prompt: str, tokens: int) -> str:
    """The likeliest continuation, token by token, without a cache."""
    ids = opened.processor(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            best = opened.model(input_ids=ids).logits[0, -1].argmax()
            if best == opened.processor.eos_token_id:
                break
            ids = torch.cat([ids, best[None, None]], dim=1)
    return opened.processor.decode(ids[0, start:], skip_special_tokens=True)


def test_an_answer_is_the_model_s_and_streams(opened: Opened) -> None:
    pieces: list[str] = []
    talk = Conversation(opened, 6, 0.0, recipe_prompt=False)
    answer = talk.ask("is the film good ?", pieces.append)
    assert answer == greedy(opened, "is the film good ? ### Response : ", 6) and answer
    assert "".join(pieces).strip() == answer and len(pieces) > 1


def test_turns_are_read_again_in_the_recipe_s_prompt_until_reset(opened: Opened, read: list[str]) -> None:
    talk = Conversation(opened, 3, 0.0, recipe_prompt=False)
    first = talk.ask("good film", lambda piece: None)
    talk.ask("bad film", lambda piece: None)
    end = opened.processor.eos_token
    assert read[1] == " ".join(
        f"good film ### Response : {first}{end} bad film ### Response :".replace(end, f" {end}").split()
    )
    talk.reset()
    talk.ask("bad film", lambda piece: None)
    assert read[2] == "bad film ### Response :"


def test_a_chat_template_comes_first_and_the_recipe_s_prompt_on_request(opened: Opened, read: list[str]) -> None:
    opened.processor.chat_template = CHATML
    talk = Conversation(opened, 2, 0.0, recipe_prompt=False)
    first = talk.ask("good film", lambda piece: None)
    talk.ask("bad film", lambda piece: None)
    assert "question [UNK] : good film ! answer :" == read[0]
    assert (
        read[1].split()
        == f"question [UNK] : good film ! question [UNK] : {first} ! question [UNK] : bad film ! answer :".split()
    )
    Conversation(opened, 2, 0.0, recipe_prompt=True).ask("good film", lambda piece: None)
    assert read[2] == "good film ### Response :"


def test_the_oldest_turns_go_when_the_model_is_full(opened: Opened, read: list[str]) -> None:
    talk = Conversation(opened, 10, 0.0, recipe_prompt=False)
    for word in ("good", "bad", "great"):
        talk.ask(" ".join([word] * 15), lambda piece: None)
    assert "good" not in read[2].split()[:15] and read[2].split()[:15] == ["bad"] * 15
    with pytest.raises(Exception, match="message: is 73 tokens long and the model has room for 54"):
        talk.ask(" ".join(["dull"] * 70), lambda piece: None)


def test_ctrl_c_ends_the_answer_and_not_the_conversation(opened: Opened) -> None:
    before = signal.getsignal(signal.SIGINT)
    talk = Conversation(opened, 40, 0.0, recipe_prompt=False)
    talk.settings.eos_token_id = None  # an answer that would go on
    whole = talk.ask("good film", lambda piece: None)
    talk.reset()
    pieces: list[str] = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    part = talk.ask("good film", interrupt)
    assert whole.startswith(part) and 0 < len(part.split()) < len(whole.split()) / 2
    assert talk.turns == [("good film", part)] and signal.getsignal(signal.SIGINT) is before
    talk.reset()
    assert talk.ask("good film", lambda piece: None) == whole


def goat(*arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_lines_from_a_pipe_are_turns(
    generation_run: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\n\n/reset\ngood film\n/exit\nbad film\n"))
    capsys.readouterr()
    assert goat("chat", str(generation_run), "--max-new-tokens", "4") == 0
    answer = greedy(opened, "good film ### Response : ", 4)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [answer, answer]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-new-tokens", "64"], "--max-new-tokens=64: the model reads and writes 64 tokens in all"),
        (["task.prompt=x"], "task.prompt=x"),
    ],
)
def test_what_cannot_work_is_one_line(
    generation_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert goat("chat", str(generation_run), *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_classifier_does_not_talk(goat_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("chat", str(goat_run)) == 2
    assert "its task is text_classification, whose model does not write" in capsys.readouterr().err


def test_view_writes_the_page_and_says_where(
    goat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert (
        goat("view", str(goat_run), "--texts", "1", "--text", "dull film", "--layers", "*query*", "--output", str(page))
        == 0
    )
    assert f"{page}: 2 texts in 2 layers (0.1 MB)" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert goat("view", str(tmp_path)) == 2
    assert "give the folder that `goat train` wrote" in capsys.readouterr().err
