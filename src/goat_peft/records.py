"""Result files: where they lie in a run folder, and how they are written so that no half file is ever seen."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError, first_line

RESULT = "result.json"
RECIPE = "recipe.yaml"
EXPERT_USAGE = "expert_usage.json"
PREDICTIONS = "predictions.jsonl"
TESTS = "tests"
EVALUATION = "evaluation.json"
HARNESS = "harness.json"
SCORING = "scoring"
TRAINED = "trained.json"
FASTCHAT = "fastchat"
CURVE_PICTURE = "curve.png"
EXPERTS_PICTURE = "experts.png"
VIEW = "view.html"
COMPARISON = "comparison.json"
ALIGNMENT = "alignment.json"
EXPORT = "export.json"
PARTIAL = ".partial"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private to the user, and a result is as public as its folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk and outlives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network drives cannot do it for folders
            raise
    finally:
        os.close(handle)


def partials(folder: Path) -> list[Path]:
    """What a kill in the middle of `write_text` left in a folder."""
    return list(folder.glob(f".*{PARTIAL}"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; values JSON does not know are written as their text."""
    write_text(path, json.dumps(value, indent=2, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `ValueError` for one that is none, whatever is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of measured rows; raise `ValueError` for a file that is none."""
    found = read_json(path)
    if not (isinstance(found, list) and all(isinstance(row, dict) for row in found)):
        raise ValueError("not a list of rows")
    return found


def read_settings(path: Path, field: str, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds keys; raise `UserError` naming `field`, the path and the `remedy` for one that is broken."""
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(f"{field}={path}: is not JSON ({first_line(error)}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{field}={path}: holds no settings; {remedy}")
    return found


def is_finished(run: Path) -> bool:
    """Tell whether `run` holds the result of a run that ended well."""
    path = run / RESULT
    if not path.is_file():
        return False
    return read_json(path)["train_info"]["status"] == "success"


def _plain(value: Any) -> Any:
    """Turn sets into sorted lists and anything else JSON lacks into text."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
