"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from goat_peft import records
from goat_peft.compare import load_plan, pool, trials
from goat_peft.errors import UserError


@dataclass
class Stub:
    """A trial as far as the pool looks at it; its `recipe` is what a stand-in for the worker is told."""

    says: str

    @property
    def recipe(self) -> Any:
        return self

    def model_dump(self, mode: str) -> str:
        return self.says

    def finished(self) -> bool:
        return False


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, int], tuple[list[str], list[str]]]:
    """Runs what is named, so many at a time; returns what was heard of, and what a stand-in for the worker wrote down."""
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

    def run(names: str, parallel: int) -> tuple[list[str], list[str]]:
        heard: list[str] = []
        trials = [Stub(says) for says in names.split()]
        pool.run_all(trials, parallel, lambda trial, done, total: heard.append(f"{trial.says} {done}/{total}"))  # type: ignore[arg-type]
        return heard, book.read_text().splitlines()

    return run


def test_a_worker_that_dies_is_replaced_and_its_run_tried_once_more(told: Any) -> None:
    heard, book = told("a dies-1 b dies-2 c", 2)
    assert sorted(line.split()[0] for line in heard) == ["a", "b", "c", "dies-1", "dies-2"]
    assert [line.split()[1] for line in heard] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert book.count("start dies-1") == book.count("start dies-2") == 2 and book.count("start a") == 1


def test_runs_without_room_are_run_again_alone_after_all_others(told: Any) -> None:
    heard, book = told("big-1 big-2 huge a b c", 3)
    assert sorted(line.split()[0] for line in heard[:3]) == ["a", "b", "c"]
    again = [line.split()[0] for line in heard[3:]]
    assert sorted(again) == ["big-1", "big-2", "huge"], "one that finds no room when alone has failed"
    assert book[-6:] == [f"{what} {name}" for name in again for what in ("start", "end")]
    assert len(book) == 18


def test_workers_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in pool._environments(3)]
    assert seen == ["2", "5", "2"]


@pytest.mark.parametrize(
    ("error", "crowded"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (UserError("training.batch_size=0: too small"), False),
        (RuntimeError("out of ideas"), False),
    ],
)
def test_only_a_run_without_memory_is_worth_another_try(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, crowded: bool
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(trials, "train", train)
    plan = load_plan(str(plan_file))
    recipe = plan.recipe(plan.recipes[0], plan.methods[0], 0.01, 0, "validation", tmp_path / "run")
    assert trials.execute(recipe) is crowded
    assert records.read_json(tmp_path / "run" / records.RESULT)["run_info"]["error_msg"] == str(error)
