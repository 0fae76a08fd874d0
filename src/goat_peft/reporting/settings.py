"""What a comparison's plan set for some methods or tasks, as lines below its table."""

from __future__ import annotations

import json
from typing import Any

import yaml

from .tables import code

_PLACES = ("task.data.folder", "task.data.train.rows", "task.data.test.rows", "evaluation.folder")
_PLACE_KEYS = {"path", "rows"}  # of a source of rows


def settings(plan: dict[str, Any]) -> list[str]:
    """The methods' own options and overrides in a line, those of the plan and of its tasks in another; none where nothing was set."""
    own = {
        method["label"]: [
            *(f"{key}={_value(value)}" for key, value in method.get("options", {}).items()),
            *method.get("overrides", []),
        ]
        for method in plan["methods"]
    }
    tasks = [task for task in plan.get("recipes", []) if isinstance(task, dict)]  # names alone in the files of before
    shared = {"every run": plan.get("overrides", []), **{task["label"]: task.get("overrides", []) for task in tasks}}
    told = {name: [text for text in found if not _names_a_place(text)] for name, found in shared.items()}
    return [*_line("Options", own), *_line("Overrides", told)]


def _line(head: str, found: dict[str, list[str]]) -> list[str]:
    parts = [f"{name} {', '.join(map(code, texts))}" for name, texts in found.items() if texts]
    return [f"{head}: {'; '.join(parts)}."] if parts else []


def _value(value: Any) -> str:
    """As `key=value` takes it: text as it is, all else as YAML's flow style, which JSON is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _names_a_place(override: str) -> bool:
    """Whether an override says no more than where this machine keeps data or a model; a limit or filter beside the place counts."""
    key, _, text = override.partition("=")
    if key in ("task.data.train", "task.data.test"):
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            return False
        return isinstance(value, dict) and set(value) <= _PLACE_KEYS
    return key in _PLACES or key == "model"
