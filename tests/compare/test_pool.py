"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from goat_peft.compare import pool


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


def test_a_worker_that_dies_is_replaced_and_each_run_is_heard_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = "import os, sys\nfor line in sys.stdin:\n    if 'die' in line: os._exit(9)\n    os.write(1, b'.')"
    popen = subprocess.Popen
    monkeypatch.setattr(
        pool.subprocess, "Popen", lambda command, **rest: popen([sys.executable, "-c", stand_in], **rest)
    )
    trials = [Stub(says) for says in ("a", "die", "b", "die", "c")]
    told: list[str] = []
    pool.run_all(trials, 2, lambda trial, done, total: told.append(trial.says))  # type: ignore[arg-type]
    assert sorted(told) == ["a", "b", "c", "die", "die"]


def test_workers_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in pool._environments(3)]
    assert seen == ["2", "5", "2"]
