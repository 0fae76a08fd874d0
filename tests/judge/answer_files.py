"""Answer files written and read by the judge's tests."""

from __future__ import annotations

import json
from pathlib import Path

from goat_peft import judge


def read(bench: Path, turns: tuple[int, ...] = (1,), name: str = "gpt-4") -> list[judge.Item]:
    """Items of a run's folder."""
    return judge.read_items(judge.find_files(bench, None, None), list(turns), {"model": name})


def record(number: int, model: str, turns: list[str]) -> dict:
    """One line of an answer file."""
    choices = [{"index": 0, "turns": turns}]
    return {"question_id": number, "answer_id": f"a{number}", "model_id": model, "choices": choices, "tstamp": 1.0}


def write(path: Path, rows: list[dict]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
