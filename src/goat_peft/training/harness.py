"""`goat eval --harness`: a run, an adapter or a base model scored by EleutherAI's lm-evaluation-harness (package lm-eval)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.exceptions import DatasetsError
from peft import TaskType
from transformers import PreTrainedTokenizerBase, set_seed

from .. import records
from ..errors import UserError, first_line
from ..tasks import processes
from . import digests, record
from .loading import device, load_processor, quiet_libraries
from .targets import Target, resolve

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# Gives an adapter or a base model its language model's head, as any generation task would; none of its rows is read.
HEAD = "gsm8k"


@dataclass(frozen=True)
class Harnessed:
    """A finished evaluation by the harness: its folder, its `harness.json`, and whether it was found there finished."""

    path: Path
    result: dict[str, Any]
    stored: bool

    def rows(self) -> list[tuple[str, str, int, str, float, float | None]]:
        """One row per figure: task or group, version, shots, metric (with its filter, unless that is none), value, standard error."""
        found = self.result["eval_info"]
        rows = []
        for name, figures in (found["results"] | found["groups"]).items():
            for key, value in figures.items():
                metric, comma, chosen = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = figures.get(f"{metric}_stderr,{chosen}")
                shown = metric if chosen == "none" else f"{metric} ({chosen})"
                about = (str(found["versions"].get(name)), int(found["n-shot"].get(name) or 0))
                rows.append((name, *about, shown, value, error if isinstance(error, int | float) else None))
        return rows


def harness(
    target: str | Path,
    names: list[str],
    include: Path | None = None,
    recipe: str | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    output: Path | None = None,
    overwrite: bool = False,
) -> Harnessed:
    """Score `target` on tasks of the lm-evaluation-harness, with the model loaded as `goat eval` loads it. The target is not changed.

    Prompts, data and metrics are the harness' own; no chat template is applied. One process, `evaluation.batch_size` rows at a time.

    Args:
        names: the harness' names of tasks, groups or tags.
        include: folder of further task files, which win over the harness' own of the same name.
        output: folder of `harness.json`; `runs/eval-NAME-DIGEST` when not given.
        overwrite: score again, and replace the `harness.json` that `output` holds.

    Raises:
        UserError: lm-eval is missing, a task is unknown or its data out of reach, or the target or folder cannot work.
    """
    if find_spec("lm_eval") is None:
        raise UserError("--harness: needs the package lm-eval; install it with: pip install 'goat-peft[harness]'")
    if processes.count() > 1:
        raise UserError("--harness: scores in one process; give the command without `goat launch`")
    started, clock = record.now(), time.perf_counter()
    found = _resolve(str(target), recipe, list(overrides))
    files = _task_files(include)
    digest = digests.of_value([found.identity, names, files, version("lm_eval"), found.settings.batch_size])
    folder = output or Path("runs") / f"eval-{re.sub(r'[^A-Za-z0-9._-]+', '-', found.name)}-{digest[:8]}"
    stored = _stored(folder, Path(target), digest, overwrite)
    if stored is not None:
        return Harnessed(folder, stored, True)
    with quiet_libraries():
        manager = _manager(names, include)
        specs = _load_tasks(names, manager)
        figures = _score(found, specs, manager)
    result = {
        "run_info": {
            "created_at": started,
            "total_time": time.perf_counter() - clock,
            "command": record.command(),
            "target": found.name,
            "kind": found.kind,
            "digest": digest,
            "harness_tasks": names,
            "harness_include": None if include is None else str(include),
            "batch_size": found.settings.batch_size,
        },
        "eval_info": figures,
        "meta_info": _origins(found),
    }
    records.write_json(folder / records.HARNESS, result)
    return Harnessed(folder, result, False)


def _resolve(target: str, recipe: str | None, overrides: list[str]) -> Target:
    """Find out what is scored; raise `UserError` for what is no causal language model."""
    for text in overrides:
        if text.startswith("task"):
            raise UserError(f"{text}: means nothing to --harness, whose tasks are its own; leave it out")
    is_run = (Path(target) / records.RECIPE).is_file()
    found = resolve(target, recipe, [] if recipe or is_run else [HEAD], overrides)
    if found.task.peft_type != TaskType.CAUSAL_LM:
        raise UserError(
            f"target={target}: its task is {found.task.options.type}; --harness scores causal language models"
        )
    return found


def _task_files(include: Path | None) -> dict[str, str]:
    """Name and digest of every file of the folder: what the tasks in it are."""
    if include is None:
        return {}
    if not include.is_dir():
        raise UserError(f"--harness-include {include}: no such folder; give one that holds lm-eval task files (.yaml)")
    files = sorted(path for path in include.rglob("*") if path.suffix in (".yaml", ".py") and path.is_file())
    return {str(path.relative_to(include)): digests.of_value(path.read_text(encoding="utf-8")) for path in files}


def _stored(folder: Path, target: Path, digest: str, overwrite: bool) -> dict[str, Any] | None:
    """Return the finished evaluation in the folder; raise `UserError` where it is something else's folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file; choose a folder")
    if (folder / records.RECIPE).exists() or folder.resolve() == target.resolve():
        raise UserError(f"--output {folder}: is a run's folder or what is scored; give a folder of its own")
    file = folder / records.HARNESS
    if not file.is_file():
        ours = not folder.is_dir() or not any(folder.iterdir()) or (folder / records.EVALUATION).is_file()
        if not ours:
            raise UserError(f"--output {folder}: holds files that are not an evaluation's; give an empty or a new one")
        return None
    if overwrite:
        return None
    found = records.read_settings(file, "--output", "give --overwrite or another --output")
    if (found.get("run_info") or {}).get("digest") != digest:
        raise UserError(
            f"--output {folder}: holds an evaluation of something else; give --overwrite or another --output"
        )
    return found


def _load_tasks(names: list[str], manager: TaskManager) -> list[Any]:
    """Build the harness' tasks and groups with their rows; raise `UserError` for one that cannot be had."""
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"--harness {','.join(unknown)}: lm-eval {version('lm_eval')} has no such task; `lm-eval ls tasks` lists them, "
            "--harness-include FOLDER adds your own"
        )
    try:
        loaded = manager.load(names)
    except (OSError, ValueError, KeyError, ImportError, DatasetsError) as error:
        raise UserError(
            f"--harness {','.join(names)}: cannot be loaded ({first_line(error)}); are its rows within reach?"
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"--harness {name}: runs the programs that the model writes, in the open; `goat eval --task` runs them in a sandbox"
            )
    inner = {child for children in loaded["group_map"].values() for child in children}
    return [spec for kind in ("groups", "tasks") for name, spec in loaded[kind].items() if name not in inner]


def _manager(names: list[str], include: Path | None) -> TaskManager:
    """Index the task files: the folder's alone where it holds all that is asked, for lm-eval's own take many seconds to read."""
    from lm_eval.tasks import TaskManager

    if include is not None:
        local = TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(local.all_subtasks):
            return local
    return TaskManager(include_path=include)


def _score(found: Target, specs: list[Any], manager: TaskManager) -> dict[str, Any]:
    """Load the model and let the harness score it; what is kept of its answer is plain data."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    set_seed(found.seed)
    tokenizer = load_processor(found.model, found.task)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model = found.load(tokenizer).to(device()).eval()
    with _without_the_notice():
        scored = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=found.settings.batch_size)
    # Without a manager it would index its own task files once more.
    answer = simple_evaluate(model=scored, tasks=specs, task_manager=manager, log_samples=False, random_seed=found.seed)
    kept = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better", "configs")
    return {name: answer.get(name, {}) for name in kept}


@contextmanager
def _without_the_notice() -> Iterator[None]:
    """Keep back the warning that a model was handed over built, which is what is meant."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _origins(found: Target) -> dict[str, Any]:
    """The `meta_info` block; the data sets are the harness' and stand in its tasks' configurations."""
    origins = record.origins(found.model, [])
    origins["package_info"]["lm_eval-version"] = version("lm_eval")
    return origins
