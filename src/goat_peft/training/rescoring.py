"""`goat eval` as a function: any model scored on any tests, into a folder of its own, continued when it was cut off."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from .. import records
from ..errors import UserError
from ..tasks import Kept, processes
from . import digests, record
from .callbacks import bar
from .disk import full_disk_explained
from .evaluation import Findings, forget, open_tests, score, write_predictions
from .loading import device, load_processor, quiet_libraries
from .targets import Target, resolve


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation: its folder and its `evaluation.json` as read back; `findings` is None when it was found finished."""

    path: Path
    result: dict[str, Any]
    findings: Findings | None


def evaluate(
    target: str | Path,
    recipe: str | None = None,
    tasks: list[str] | tuple[str, ...] = (),
    overrides: list[str] | tuple[str, ...] = (),
    output: Path | None = None,
    overwrite: bool = False,
) -> Evaluated:
    """Score a run, an adapter or a base model; see `targets.resolve` for the arguments. The target itself is not changed.

    A finished evaluation of the same model, tests and rows is returned as it is; one that was cut off continues.

    Args:
        output: folder of the figures and predictions; `runs/eval-NAME-DIGEST` when not given.
        overwrite: score again, and replace what `output` holds.

    Raises:
        UserError: the target, the tests or the folder cannot work; the message says what would.
    """
    started, clock = record.now(), time.perf_counter()
    found = resolve(str(target), recipe, list(tasks), list(overrides))
    room = full_disk_explained("output", lambda: "free some space and give the same command again: it continues")
    with room, quiet_libraries():
        tests = open_tests(found.task, found.settings)
        digest = digests.of_value([test.key(found.identity) for test in tests] + [found.settings.split])
        folder = output or Path("runs") / f"eval-{re.sub(r'[^A-Za-z0-9._-]+', '-', found.name)}-{digest[:8]}"
        stored = _open(folder, Path(target), digest, overwrite)
        if stored is not None:
            return Evaluated(folder, stored, None)
        with bar() if processes.is_main() else nullcontext(bar()) as progress:
            set_seed(found.seed)
            processor = load_processor(found.model, found.task)
            model = found.load(processor).to(device())
            keep = folder / records.SCORING
            if overwrite and processes.is_main():
                _clear(folder)
            processes.wait()
            findings = score(model, tests, processor, found.settings, progress, keep=keep, identity=found.identity)
        result = _result(found, findings, digest, started, time.perf_counter() - clock)
        if processes.is_main():
            write_predictions(folder, findings)
            if findings.usage:
                records.write_json(folder / records.EXPERT_USAGE, {found.settings.split: findings.usage})
            records.write_json(folder / records.EVALUATION, result)
        forget(keep)
    return Evaluated(folder, result, findings)


def _open(folder: Path, target: Path, digest: str, overwrite: bool) -> dict[str, Any] | None:
    """Return what a finished evaluation of the same things left in the folder; None where there is to be a new one."""
    found: dict[str, Any] | str | None = None
    if processes.is_main():
        try:
            found = _stored(folder, target)
            if found is not None and not overwrite and found["run_info"]["digest"] != digest:
                raise UserError(
                    f"output={folder}: holds an evaluation of something else; give --overwrite or another --output"
                )
        except UserError as error:
            found = str(error)
    found = processes.broadcast(found)
    if isinstance(found, str):
        raise UserError(found)
    return None if overwrite else found


def _stored(folder: Path, target: Path) -> dict[str, Any] | None:
    """Read the finished evaluation in the folder, if there is one.

    Raises:
        UserError: an evaluation may not write there: it is no folder, is what is scored, or holds something else's files.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder}: is a file; choose a folder")
    if (folder / records.RECIPE).exists() or folder.resolve() == target.resolve():
        raise UserError(f"--output {folder}: is a run's folder or what is scored; give a folder of its own")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    file = folder / records.EVALUATION
    try:
        stored = records.read_json(file) if file.is_file() else None
    except ValueError:
        stored = None
    if isinstance(stored, dict) and "digest" in (stored.get("run_info") or {}):
        return stored
    if not Kept.are_in(folder / records.SCORING):
        raise UserError(
            f"--output {folder}: holds files that are not an evaluation's; give an empty folder or a new one"
        )
    return None


def _clear(folder: Path) -> None:
    """Remove what an evaluation wrote, and nothing else that may lie in its folder."""
    for name in (records.EVALUATION, records.PREDICTIONS, records.EXPERT_USAGE):
        (folder / name).unlink(missing_ok=True)
    for name in (records.TESTS, records.SCORING, records.FASTCHAT):
        shutil.rmtree(folder / name, ignore_errors=True)


def _result(target: Target, findings: Findings, digest: str, started: str, seconds: float) -> dict[str, Any]:
    """Build the three blocks of an evaluation's file."""
    prefix = "test" if target.settings.split == "test" else "valid"
    tests = [test.task.options for test, _ in findings.found]
    return {
        "run_info": {
            "created_at": started,
            "total_time": seconds,
            "command": record.command(),
            "target": target.name,
            "kind": target.kind,
            "split": target.settings.split,
            "processes": processes.count(),
            "digest": digest,
            "tasks": [options.model_dump(mode="json") for options in tests],
        },
        "eval_info": {
            "metrics": findings.metrics,
            "counts": findings.counts,
            "samples": findings.samples,
            "notes": findings.notes,
            "row": findings.row(prefix),
        },
        "meta_info": record.origins(target.model, tests),
    }
