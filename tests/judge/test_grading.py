"""Grading against a service that times out, refuses, breaks off and babbles: all retried or reported, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from answer_files import read
from fake_judge import KEY, Act, FakeJudge, completion

from goat_peft import judge
from goat_peft.errors import UserError

# Waits are short; a try may still take long, since the machine may be busy.
QUICK = judge.Patience(attempts=4, base=0.01, longest=0.05, timeout=60.0)
IMPATIENT = replace(QUICK, timeout=0.7)


def grade(items: list[judge.Item], server: FakeJudge, log: Path, **settings: Any) -> judge.Graded:
    """Grade with little patience."""
    endpoint = judge.Endpoint(server.url, "gpt-4", KEY, {"temperature": 0}, settings.pop("patience", QUICK))
    with judge.open_log(log) as opened:
        return judge.grade(items, endpoint, opened, **settings)


def ratings(graded: judge.Graded) -> list[list[float]]:
    return [[row["rating"] for row in rows] for rows in graded.judgements]


TROUBLES = {
    "timeout": Act(wait=5.0),
    "429": Act(status=429, body='{"error": {"message": "slow down"}}'),
    "500": Act(status=500, body="oops"),
    "503": Act(status=503, body=""),
    "truncated JSON": Act(body=completion("Rating: [[2]]")[:-40]),
    "empty choices": Act(body='{"choices": []}'),
    "no choices": Act(body="{}"),
    "null message": Act(body=completion(None)),
    "choices of another type": Act(body='{"choices": "none"}'),
    "not JSON": Act(body="<html>busy</html>", headers={"Content-Type": "text/html"}),
    "dropped connection": Act(drop=True),
    "no rating": Act(text="I cannot decide."),
    "rating out of scale": Act(text="Rating: [[77]]"),
}


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_trouble_that_passes_costs_no_judgement(items: list[judge.Item], tmp_path: Path, trouble: str) -> None:
    with FakeJudge(lambda body, before: TROUBLES[trouble] if before == 0 else Act()) as server:
        patience = IMPATIENT if trouble == "timeout" else QUICK
        graded = grade(items[:2], server, tmp_path / "log.jsonl", patience=patience)
    assert ratings(graded) == [[7.0], [7.0]] and not graded.failures
    again = graded.tally.retries + graded.tally.malformed
    assert again >= 2 if trouble == "timeout" else (again, len(server.requests)) == (2, 4)


@pytest.mark.parametrize(
    ("trouble", "said", "asked"),
    [
        ("500", "HTTP 500", 4),
        ("timeout", "no reply within", None),
        ("dropped connection", "no connection", 4),
        ("truncated JSON", "not a chat completion", 4),
        ("no rating", "no rating from 1 to 10 in 3 replies", 3),
    ],
)
def test_trouble_that_stays_is_reported_and_in_no_mean(
    items: list[judge.Item], tmp_path: Path, trouble: str, said: str, asked: int | None
) -> None:
    """`asked`: how often the question that fails is sent; a try that times out may not have arrived."""

    def script(body: dict, before: int) -> Act:
        return TROUBLES[trouble] if "Question 82?" in body["messages"][1]["content"] else Act()

    with FakeJudge(script) as server:
        patience = IMPATIENT if trouble == "timeout" else QUICK
        graded = grade(items, server, tmp_path / "log.jsonl", patience=patience)
    assert ratings(graded) == [[7.0], [], [7.0], [7.0], [7.0], [7.0]]
    assert [(row["question_id"], row["turn"]) for row in graded.failures] == [(82, 1)]
    assert said in graded.failures[0]["error"]
    assert asked is None or len(server.requests) == 5 + asked
    figures = judge.summarise(items, graded, 1)
    assert figures["score"] == 7.0 and figures["questions"] == 5 and figures["counts"]["failed"] == 1


def test_a_rerun_asks_for_what_is_missing_alone(items: list[judge.Item], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    quick = judge.Patience(attempts=2, base=0.001)
    broken = {"on": True}

    def script(body: dict, before: int) -> Act:
        return TROUBLES["500"] if broken["on"] and "Question 83?" in body["messages"][1]["content"] else Act()

    with FakeJudge(script) as server:
        assert len(grade(items, server, log, patience=quick).failures) == 1
        broken["on"] = False
        server.requests.clear()
        graded = grade(items, server, log)
        assert ratings(graded) == [[7.0]] * 6 and graded.tally.earlier == 5
        assert ["Question 83?" in body["messages"][1]["content"] for body in server.requests] == [True]
        server.requests.clear()
        grade(items, server, log)
        assert server.requests == []
        assert ratings(grade(items, server, log, samples=3)) == [[7.0] * 3] * 6
        assert len(server.requests) == 12
        assert graded.tally.prompt_tokens == 600 and graded.tally.completion_tokens == 120


def test_a_changed_answer_is_judged_anew(bench: Path, items: list[judge.Item], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with FakeJudge() as server:
        grade(items, server, log)
        answers = bench / "fastchat/model_answer/tiny.jsonl"
        answers.write_text(answers.read_text().replace("Answer 86.", "A better answer."))
        server.requests.clear()
        changed = read(bench)
        assert ratings(grade(changed, server, log)) == [[7.0]] * 6
        assert ["A better answer." in body["messages"][1]["content"] for body in server.requests] == [True]
        server.requests.clear()
        assert ratings(grade(items, server, log)) == [[7.0]] * 6
        assert server.requests == []


def test_what_a_kill_left_of_the_last_line_is_dropped_and_asked_again(items: list[judge.Item], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with FakeJudge() as server:
        grade(items, server, log, concurrency=1)
        whole = log.read_bytes()
        for cut in (1, 40, len(whole.splitlines()[-1])):
            log.write_bytes(whole[:-cut])
            server.requests.clear()
            assert ratings(grade(items, server, log)) == [[7.0]] * 6
            assert len(server.requests) == 1
            assert len([json.loads(line) for line in log.read_text().splitlines()]) == 6
    log.write_bytes(b"not a reply\n" + whole)
    with pytest.raises(UserError, match="line 1 is not a judge's reply"), judge.open_log(log):
        pass


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with judge.open_log(log), pytest.raises(UserError, match="another `goat judge`"), judge.open_log(log):
        pass


def test_a_full_disk_leaves_a_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"key": "k", "sample": 0, "rating": 7.0, "reply": "x" * 99, "prompt_tokens": 1, "completion_tokens": 1}
    write, left = os.write, [200]

    def scarce(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        part = data[: left[0]]
        left[0] -= len(part)
        return write(descriptor, part)

    with judge.open_log(tmp_path / "log.jsonl") as log:
        monkeypatch.setattr(os, "write", scarce)
        log.add(row)
        with pytest.raises(UserError, match="No space left on device"):
            log.add(row)
        monkeypatch.undo()
        log.add(row)
    with judge.open_log(tmp_path / "log.jsonl") as log:
        assert log.rows == [row, row]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_retry_mends_stops_at_once(items: list[judge.Item], tmp_path: Path, status: int) -> None:
    told = json.dumps({"error": {"message": f"no entry for {KEY}"}})
    with FakeJudge(lambda body, before: Act(status=status, body=told)) as server:
        with pytest.raises(UserError, match=rf"HTTP {status} for model gpt-4 \(no entry for \[key\]\)") as error:
            grade(items, server, tmp_path / "log.jsonl", concurrency=2)
        assert len(server.requests) <= 2
    assert KEY not in str(error.value)


def test_an_empty_purse_is_no_rate_limit(items: list[judge.Item], tmp_path: Path) -> None:
    told = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    with FakeJudge(lambda body, before: Act(status=429, body=told)) as server:
        with pytest.raises(UserError, match="exceeded your quota"):
            grade(items, server, tmp_path / "log.jsonl", concurrency=1)
        assert len(server.requests) == 1


def test_a_request_that_is_never_accepted_ends_the_run(items: list[judge.Item], tmp_path: Path) -> None:
    told = json.dumps({"error": {"message": "max_tokens is not supported"}})
    with FakeJudge(lambda body, before: Act(status=400, body=told)) as server:
        with pytest.raises(UserError, match="the first 5 requests all failed.*max_tokens is not supported"):
            grade(items, server, tmp_path / "log.jsonl", concurrency=1)
        assert len(server.requests) == 5


def test_the_endpoint_s_wish_to_wait_is_honoured(items: list[judge.Item], tmp_path: Path) -> None:
    busy = Act(status=429, body="{}", headers={"Retry-After": "0.5"})
    with FakeJudge(lambda body, before: busy if before == 0 else Act()) as server:
        begin = datetime.now(UTC)
        graded = grade(items[:1], server, tmp_path / "log.jsonl")
        assert datetime.now(UTC) - begin >= timedelta(seconds=0.5)
        assert ratings(graded) == [[7.0]] and graded.tally.retries == 1
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert judge.endpoint.retry_after(soon) == pytest.approx(30, abs=2)
    assert judge.endpoint.retry_after("soon") is None
    never = Act(status=429, body="{}", headers={"Retry-After": "86400"})
    with FakeJudge(lambda body, before: never) as server:
        assert "asks to wait 86400 s" in grade(items[:1], server, tmp_path / "other.jsonl").failures[0]["error"]
        assert len(server.requests) == 1


def test_waits_grow_and_differ() -> None:
    patience = judge.Patience(base=1.0, longest=60.0)
    waits = [[patience.wait(tries) for _ in range(50)] for tries in (1, 3, 5, 20)]
    for full, drawn in zip((1, 4, 16, 60), waits, strict=True):
        assert full / 2 <= min(drawn) < max(drawn) <= full
        assert len(set(drawn)) > 40
    assert patience.wait(1, asked=30.0) >= 30.0


def test_no_service_at_all_is_one_error(items: list[judge.Item], tmp_path: Path) -> None:
    with FakeJudge() as server:
        pass
    quick = judge.Patience(attempts=2, base=0.001)
    with pytest.raises(UserError, match="the first 5 requests all failed.*no connection"):
        grade(items, server, tmp_path / "log.jsonl", patience=quick)


def test_ctrl_c_keeps_what_came_in(items: list[judge.Item], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    pressed = []

    def script(body: dict, before: int) -> Act:
        if len(server.requests) == 4 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
            return Act(wait=5.0)
        return Act()

    with FakeJudge(script) as server:
        with pytest.raises(KeyboardInterrupt):
            grade(items, server, log, concurrency=1)
        assert len(log.read_text().splitlines()) == 3
        server.requests.clear()
        assert ratings(grade(items, server, log)) == [[7.0]] * 6
        assert len(server.requests) == 3


def test_several_judgements_and_their_spread(items: list[judge.Item], tmp_path: Path) -> None:
    by_question = {81: 2, 82: 4, 83: 6, 84: 6, 85: 9, 86: 9}

    def script(body: dict, before: int) -> Act:
        number = next(n for n in by_question if f"Question {n}?" in body["messages"][1]["content"])
        return Act(text=f"[[{by_question[number] + (before - 1 if number == 81 else 0)}]]")

    with FakeJudge(script) as server:
        graded = grade(items, server, tmp_path / "log.jsonl", samples=3, concurrency=1)
    figures = judge.summarise(items, graded, 3)
    assert [row["ratings"] for row in figures["answers"]][:2] == [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]
    assert figures["score"] == pytest.approx(6.0)
    # Standard deviation of 2, 4, 6, 6, 9, 9 over the root of six; the judge's own: a variance of 1 in one answer of six.
    assert figures["standard_error"] == pytest.approx((38 / 5 / 6) ** 0.5)
    assert figures["judge_sd"] == pytest.approx((1 / 6) ** 0.5)
    assert {name: row["score"] for name, row in figures["categories"].items()} == {
        "writing": 3,
        "math": 6,
        "roleplay": 9,
    }
    assert figures["categories"]["math"]["standard_error"] == 0.0
    assert figures["counts"]["judgements"] == 18 and figures["counts"]["prompt_tokens"] == 1800


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_at_once_as_wanted(items: list[judge.Item], tmp_path: Path, concurrency: int) -> None:
    with FakeJudge(lambda body, before: Act(wait=0.05)) as server:
        grade(items, server, tmp_path / "log.jsonl", concurrency=concurrency)
    assert server.peak == concurrency


def test_the_request_is_fastchat_s(items: list[judge.Item], tmp_path: Path) -> None:
    with FakeJudge() as server:
        grade(items, server, tmp_path / "log.jsonl")
    for body in server.requests:
        assert (body["model"], body["temperature"]) == ("gpt-4", 0)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert server.keys == {f"Bearer {KEY}"}
    users = Counter(body["messages"][1]["content"] for body in server.requests)
    assert users == Counter(item.messages[1]["content"] for item in items)


def test_a_key_that_the_service_repeats_reaches_no_file(items: list[judge.Item], tmp_path: Path) -> None:
    with FakeJudge(lambda body, before: Act(text=f"Your key is {KEY}. [[5]]")) as server:
        graded = grade(items[:1], server, tmp_path / "log.jsonl")
    assert graded.judgements[0][0]["reply"] == "Your key is [key]. [[5]]"
    assert KEY not in (tmp_path / "log.jsonl").read_text()


def test_a_placeholder_key_alters_no_reply(items: list[judge.Item]) -> None:
    with FakeJudge(lambda body, before: Act(text="There is none. [[5]]")) as server:
        endpoint = judge.Endpoint(server.url, "gpt-4", "none", {})
        assert asyncio.run(endpoint.ask(items[0].messages)).text == "There is none. [[5]]"


@pytest.mark.parametrize(
    "url",
    [
        "example.com/v1",
        "ftp://example.com",
        "https://",
        "https://me:secret@example.com/v1",
        "https://e.com/?key=secret",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret(url: str) -> None:
    with pytest.raises(UserError, match="^--endpoint=") as error:
        judge.check_url(url)
    assert "secret" not in str(error.value)


def test_local_addresses() -> None:
    assert all(map(judge.is_local, ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1"]))
    assert not any(map(judge.is_local, ["http://10.0.0.1/v1", "https://localhost.example.com/v1"]))
