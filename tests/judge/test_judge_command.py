"""`goat judge`: files, figures, exit codes; a kill and Ctrl-C in the middle; the key nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from answer_files import write
from fake_judge import KEY, Act, FakeJudge

import goat_peft
from goat_peft.cli import main


def goat_judge(*arguments: object) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(["judge", *map(str, arguments)])
    return int(stop.value.code or 0)


def holds(folder: Path, text: str) -> list[Path]:
    """Files under a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_from_answers_to_scores(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeJudge(lambda body, before: Act(text=f"Rating: [[{6 + 2 * before}]]")) as server:
        place = [bench, "--model", "org/gpt-4", "--endpoint", server.url]
        settings = ["--samples", 2, "--turns", "both", "temperature=0.7", "max_tokens=null", "top_p=0.9"]
        assert goat_judge(*place, *settings) == 0
        assert len(server.requests) == 24
        sent = server.requests[0]
        assert (sent["model"], sent["temperature"], sent["top_p"]) == ("org/gpt-4", 0.7, 0.9)
        assert "max_tokens" not in sent
        said = capsys.readouterr()
        server.requests.clear()
        assert goat_judge(*place, *settings) == 0
        assert server.requests == [] and capsys.readouterr().out == said.out
    folder = bench / "judge/org-gpt-4"
    result = json.loads((folder / "judge.json").read_text())
    assert list(result) == ["run_info", "judge_info", "meta_info"]
    assert result["run_info"]["model"] == "tiny" and result["run_info"]["judge"] == "org/gpt-4"
    assert result["run_info"]["request"] == {"temperature": 0.7, "top_p": 0.9}
    figures = result["judge_info"]
    assert figures["score"] == 7.0 and figures["judge_sd"] == pytest.approx(2**0.5)
    assert {turn: row["questions"] for turn, row in figures["turns"].items()} == {"1": 6, "2": 6}
    assert result["meta_info"]["package_info"]["openai-version"]
    digest = hashlib.sha256((bench / "fastchat/model_answer/tiny.jsonl").read_bytes()).hexdigest()
    assert result["meta_info"]["dataset_info"]["answers"]["sha256"] == digest
    assert (folder / "judge.png").read_bytes().startswith(b"\x89PNG")
    assert "7.00" in said.out and "2400 tokens sent, 480 received" in said.out and "roleplay" in said.out
    # What FastChat's show_result reads: model, score and turn of every row.
    rows = [json.loads(line) for line in (folder / "org-gpt-4_single.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert {(row["model"], row["judge"][0], row["turn"]) for row in rows} == {
        ("tiny", "org/gpt-4", 1),
        ("tiny", "org/gpt-4", 2),
    }
    assert {row["judge"][1] for row in rows if row["question_id"] == 83} == {
        "single-math-v1",
        "single-math-v1-multi-turn",
    }
    assert server.keys == {f"Bearer {KEY}"}
    assert holds(bench, KEY) == [] and KEY not in said.out + said.err


def test_an_answer_file_alone(bench: Path, tmp_path: Path, key: str) -> None:
    answers = bench / "fastchat/model_answer/tiny.jsonl"
    with FakeJudge() as server:
        assert goat_judge(answers, "--model", "j", "--endpoint", server.url) == 0
        assert (answers.parent / "tiny-judge/j/judge.json").is_file()
        assert goat_judge(answers, "--model", "j", "--endpoint", server.url, "--output", tmp_path / "x") == 0
        assert (tmp_path / "x/judge.json").is_file() and len(server.requests) == 12


def test_what_failed_is_said_counted_and_asked_again(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    stubborn = {"82": "No number from me."}

    def script(body: dict, before: int) -> Act:
        question = body["messages"][1]["content"]
        return Act(text=next((text for number, text in stubborn.items() if f"Question {number}?" in question), "[[4]]"))

    with FakeJudge(script) as server:
        place = [bench, "--model", "j", "--endpoint", server.url]
        assert goat_judge(*place) == 1
        said = capsys.readouterr()
        assert "question 82, turn 1: no rating from 1 to 10 in 3 replies" in said.err
        assert "1 judgements failed and are in no mean" in said.err
        figures = json.loads((bench / "judge/j/judge.json").read_text())["judge_info"]
        assert figures["score"] == 4.0
        assert (figures["counts"]["failed"], figures["counts"]["malformed_replies"]) == (1, 3)
        assert figures["failures"][0]["question_id"] == 82
        stubborn.clear()
        server.requests.clear()
        assert goat_judge(*place) == 0
        assert len(server.requests) == 1
    figures = json.loads((bench / "judge/j/judge.json").read_text())["judge_info"]
    assert figures["counts"]["failed"] == 0 and figures["questions"] == 6
    assert figures["counts"]["prompt_tokens"] == 900


def test_a_service_s_words_are_no_markup(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing graded at all still gives a result that says so."""
    questions = bench / "fastchat/question.jsonl"
    write(questions, [{"question_id": 81, "category": "[/odd] [red]", "turns": ["Question 81?"]}])
    told = json.dumps({"error": {"message": "[/bold] too long [green]"}})
    with FakeJudge(lambda body, before: Act(status=400, body=told)) as server:
        assert goat_judge(bench, "--model", "[/j]", "--endpoint", server.url) == 1
    said = capsys.readouterr()
    assert "[/bold] too long [green]" in said.err and "[/odd] [red]" in said.out
    [result] = (bench / "judge").glob("*/judge.json")
    assert json.loads(result.read_text())["judge_info"]["score"] is None


@pytest.mark.slow  # test_grading.py continues a judgement in one process
def test_kill_9_in_the_middle_then_the_same_command(bench: Path, key: str) -> None:
    process: list[subprocess.Popen] = []

    def script(body: dict, before: int) -> Act:
        if process and len(server.requests) == 4:
            process[0].kill()
            return Act(wait=2.0)
        return Act()

    with FakeJudge(script) as server:
        arguments = [str(bench), "--model", "j", "--endpoint", server.url]
        code = "from goat_peft.cli import main; main()"
        command = [sys.executable, "-c", code, "judge", *arguments, "--concurrency", "1"]
        process.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        assert process[0].wait(timeout=120) == -signal.SIGKILL
        process.clear()
        folder = bench / "judge/j"
        assert not (folder / "judge.json").exists()
        assert len((folder / "judgements.jsonl").read_text().splitlines()) == 3
        server.requests.clear()
        assert goat_judge(*arguments) == 0
        assert len(server.requests) == 3
    assert json.loads((folder / "judge.json").read_text())["judge_info"]["counts"]["judgements"] == 6
    assert holds(bench, KEY) == []


def test_ctrl_c_says_how_to_go_on(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    def script(body: dict, before: int) -> Act:
        if len(server.requests) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            return Act(wait=2.0)
        return Act()

    with FakeJudge(script) as server:
        assert goat_judge(bench, "--model", "j", "--endpoint", server.url, "--concurrency", 1) == 130
    said = capsys.readouterr().err
    assert "every judgement so far is kept" in said and "continue with:" in said
    assert len((bench / "judge/j/judgements.jsonl").read_text().splitlines()) == 2


def test_a_service_on_this_machine_needs_no_key(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeJudge() as server:
        assert goat_judge(bench, "--model", "j", "--endpoint", server.url) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--endpoint", "https://example.com/v1", "--key-variable", "NOT_SET_ANYWHERE"],
            "--key-variable=NOT_SET_ANYWHERE",
        ),
        (["--endpoint", "https://example.com/v1", "--key-variable", KEY], "give its name, never the key"),
        (["--endpoint", "example.com"], "not a web address"),
        (["--endpoint", "http://127.0.0.1:9/v1", "model=x"], "the judge is --model"),
        (["--endpoint", "http://127.0.0.1:9/v1", "temperature"], "temperature: not a field"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--questions", "/absent"], "--questions=/absent: no such file"),
    ],
)
def test_mistakes_are_one_line(
    bench: Path, key: str, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert goat_judge(bench, "--model", "j", *arguments) == 2
    found = capsys.readouterr().err
    assert found.count("error: ") == 1 and said in found and KEY not in found


def test_a_refused_key_is_one_line(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with FakeJudge(lambda body, before: Act(status=401, body=told)) as server:
        assert goat_judge(bench, "--model", "j", "--endpoint", server.url) == 2
    found = capsys.readouterr().err
    assert "HTTP 401" in found and "check the key" in found and "Traceback" not in found and KEY not in found
    assert holds(bench, KEY) == []


def test_a_key_on_the_command_line_is_refused(bench: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["goat", "judge", f"user={KEY}"])
    with FakeJudge() as server:
        assert goat_judge(bench, "--model", "j", "--endpoint", server.url) == 2
        assert server.requests == []


def test_a_placeholder_key_may_stand_in_the_command(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "vllm")
    monkeypatch.setattr(sys, "argv", ["goat", "judge", "--model", "vllm-model"])
    with FakeJudge() as server:
        assert goat_judge(bench, "--model", "vllm-model", "--endpoint", server.url) == 0
        assert server.keys == {"Bearer vllm"}


def test_without_the_client_the_remedy_is_named(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("goat_peft.judge")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(goat_peft, "judge")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert goat_judge(bench, "--model", "j", "--endpoint", "http://127.0.0.1:9/v1") == 2
    assert "pip install 'goat-peft[judge]'" in capsys.readouterr().err


def test_without_references_nothing_is_asked(bench: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(bench / "fastchat/reference_answer/gpt-4.jsonl", [])
    with FakeJudge() as server:
        assert goat_judge(bench, "--model", "j", "--endpoint", server.url) == 2
        assert server.requests == []
    assert "--references" in capsys.readouterr().err
