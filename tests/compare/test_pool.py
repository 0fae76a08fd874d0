"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from goat_peft import records
from goat_peft.compare import load_plan, pool, trials, worker
from goat_peft.errors import UserError


@dataclass
class Stub:
    """A trial as far as the pool looks at it; its `recipe` is what a stand-in for the worker is told."""

    says: str
    book: Path
    known = None

    @property
    def recipe(self) -> Any:
        return self

    def model_dump(self, mode: str) -> str:
        return self.says

    def finished(self) -> bool:
        return "whole" in self.says and self.book.is_file() and f"start {self.says}" in self.book.read_text()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[list[str], list[str]]]:
    """Runs what is named, so many at a time on so many devices; returns what was heard of, and what a stand-in for the worker wrote down."""
    book = tmp_path / "book"
    stand_in = f"""
import os, sys, time
def note(what, says):
    with open({str(book)!r}, "a") as book: book.write(what + " " + says + "\\n")
    return open({str(book)!r}).read().count(what + " " + says)
for line in sys.stdin:
    says = line.strip().strip('"')
    times = note("start", says)
    if "dies" in says: os._exit(9)
    time.sleep(0.1)
    note("end", says)
    os.write(1, b"m" if "big" in says and times == 1 or "huge" in says else b".")
"""
    popen = subprocess.Popen
    monkeypatch.setattr(
        pool.subprocess, "Popen", lambda command, **rest: popen([sys.executable, "-c", stand_in], **rest)
    )

    def run(names: str, parallel: int, devices: int = 0) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(pool, "_devices", lambda: [str(index) for index in range(devices)])
        heard: list[str] = []

        def tell(trial: Any, done: int, total: int, again: bool) -> None:
            heard.append(f"{trial.says} {done}/{total}{' again' if again else ''}")

        pool.run_all([Stub(says, book) for says in names.split()], parallel, tell)  # type: ignore[arg-type]
        return heard, book.read_text().splitlines()

    return run


def test_a_worker_that_dies_is_replaced_and_its_run_tried_once_more(told: Any) -> None:
    heard, book = told("a dies-1 b dies-2 c", 2)
    again = [line for line in heard if line.endswith(" again")]
    ended = [line for line in heard if line not in again]
    assert sorted(line.split()[0] for line in again) == ["dies-1", "dies-2"]
    assert sorted(line.split()[0] for line in ended) == ["a", "b", "c", "dies-1", "dies-2"]
    assert [line.split()[1] for line in ended] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert book.count("start dies-1") == book.count("start dies-2") == 2 and book.count("start a") == 1


def test_runs_without_room_are_run_again_alone_after_all_others(told: Any) -> None:
    heard, book = told("big-1 big-2 huge a b c", 3, devices=1)
    again = [line.split()[0] for line in heard[-3:]]
    assert sorted(again) == ["big-1", "big-2", "huge"], "one that finds no room when alone has failed"
    assert book[-6:] == [f"{what} {name}" for name in again for what in ("start", "end")]
    assert len(book) == 18


def test_two_devices_take_one_each_of_those_without_room(told: Any) -> None:
    _, book = told("big-1 big-2 big-3 big-4 a", 5, devices=2)
    assert len(book) == 18
    under_way = most = 0
    for line in book[10:]:
        under_way += 1 if line.startswith("start") else -1
        most = max(most, under_way)
    assert most == 2


def test_nothing_is_run_again_that_had_its_device_to_itself_or_is_finished(told: Any) -> None:
    assert told("huge a", 2, devices=2)[1].count("start huge") == 1
    heard, book = told("huge-whole b c", 2)
    assert book.count("start huge-whole") == 1 and not any(line.endswith(" again") for line in heard)


def test_workers_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in pool._environments(3)]
    assert seen == ["2", "5", "2"]


@pytest.mark.parametrize(
    ("error", "crowded"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (UserError("training.batch_size=0: too small"), False),
        (RuntimeError("out of ideas"), False),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_only_a_run_without_memory_is_worth_another_try(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, crowded: bool, inside: bool
) -> None:
    def train(*_: Any, **__: Any) -> None:
        if inside:
            raise ValueError("while training") from error
        raise error

    monkeypatch.setattr(trials, "train", train)
    plan = load_plan(str(plan_file))
    recipe = plan.recipe(plan.recipes[0], plan.methods[0], 0.01, 0, "validation", tmp_path / "run")
    said = worker.run(json.dumps(recipe.model_dump(mode="json")))
    assert said == (pool.CROWDED if crowded else pool.ENDED)
    result = records.read_json(tmp_path / "run" / records.RESULT)
    assert result["run_info"]["error_msg"] == ("while training" if inside else str(error))
