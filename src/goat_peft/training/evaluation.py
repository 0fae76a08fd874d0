"""Scoring a model: on a recipe's own split, or on several tests, each continued where an earlier attempt was cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.progress import Progress, TaskID
from torch import nn

from .. import records
from ..errors import UserError
from ..recipes import Evaluation
from ..tasks import Kept, Processor, Scores, Scoring, Splits, Task, bind, processes
from ..tasks.decoding import eval_mode
from . import digests


@dataclass(frozen=True)
class Test:
    """Rows to score and the task that scores them; `name` is empty for a recipe's own split."""

    name: str
    task: Task
    rows: Dataset

    @property
    def field(self) -> str:
        """What a figure's name begins with."""
        return f"{self.name} " if self.name else ""

    def key(self, identity: Any) -> str:
        """Digest of all that the rows' scores depend on; `identity` is plain data that tells the model from others."""
        return digests.of_value({"task": digests.of_task(self.task.options), "rows": self._rows, "model": identity})

    @cached_property
    def _rows(self) -> str:
        return digests.of_rows(self.rows)


@dataclass(frozen=True)
class Findings:
    """What was found: a test and its scores, one after the other, and the expert usage over all of them."""

    found: list[tuple[Test, Scores]]
    usage: list[dict[str, Any]]

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure: `exact_match`, or `gsm8k exact_match` and `average`, the mean of the tests' main figures."""
        # Floats even where a figure is 0 or 1: whole numbers are counts.
        figures = {
            f"{test.field}{name}": float(value) for test, own in self.found for name, value in own.metrics.items()
        }
        if len(self.found) > 1:
            main = [scores.metrics[test.task.main_metric] for test, scores in self.found]
            figures["average"] = sum(main) / len(main)
        return figures

    @property
    def counts(self) -> dict[str, int]:
        """Every count, under names as `metrics` has."""
        return {f"{test.field}{name}": value for test, own in self.found for name, value in own.counts.items()}

    @property
    def samples(self) -> int:
        """Scored rows of all tests together."""
        return sum(len(scores.predictions) for _, scores in self.found)

    @property
    def notes(self) -> list[str]:
        """What the tests have to say beside their figures."""
        return [scores.note for _, scores in self.found if scores.note]

    def row(self, prefix: str) -> dict[str, Any]:
        """All figures as one row of a result, each name behind `prefix` (`test`, `valid`, `untrained test`)."""
        figures = self.metrics | self.counts | {"samples": self.samples}
        return {f"{prefix} {name}": value for name, value in figures.items()}


def open_tests(task: Task, settings: Evaluation, splits: Splits | None = None) -> list[Test]:
    """Read the rows of what an evaluation scores: the tests it names, or the wanted split of the task itself.

    Args:
        splits: rows of the task, where they have been read already.

    Raises:
        UserError: a test is for another kind of model or another head than the task's, or rows of it cannot be scored.
    """
    if not settings.tests or settings.split != "test":
        rows = (task.load(settings.split) if splits is None else splits).named(settings.split)
        task.check(rows)
        return [Test("", task, rows)]
    found = []
    for options in settings.tests:
        own = bind(options)
        if own.peft_type != task.peft_type:
            raise UserError(
                f"evaluation.tests={options.name}: is a {options.type} task, for another kind of model than {task.options.type}; "
                "leave it out"
            )
        rows = own.load("test", f"evaluation.tests.{options.name}.data").named("test")
        if own.outputs != task.outputs:
            raise UserError(
                f"evaluation.tests={options.name}: its labels are {_listed(own.outputs)}, and the head of "
                f"{task.options.name or 'the task'} has {_listed(task.outputs)}; leave it out"
            )
        try:
            own.check(rows)
        except UserError as error:
            raise UserError(f"evaluation.tests={options.name}: {error}") from error
        found.append(Test(options.name, own, rows))
    return found


def _listed(outputs: list[str | int] | None) -> str:
    """The number of a head's outputs and the first of them, for messages."""
    outputs = outputs or []
    return f"{len(outputs)} ({', '.join(map(str, outputs[:5]))}{', ...' if len(outputs) > 5 else ''})"


def score(
    model: nn.Module,
    tests: list[Test],
    processor: Processor,
    settings: Evaluation,
    progress: Progress,
    label: str = "score",
    keep: Path | None = None,
    identity: Any = None,
) -> Findings:
    """Score `model` on the tests, in eval mode; each module is in its own mode again afterwards.

    Args:
        label: names what is scored, on the progress bar and in the kept files ("score", "untrained").
        keep: folder for rows as they are found; those that an evaluation of the same tests and model left are not scored again.
        identity: plain data that tells the model from others; needed with `keep`.
    """
    tracks = hasattr(model, "track_expert_usage")
    if tracks:
        model.reset_expert_usage()  # type: ignore[operator]
    found = []
    with eval_mode(model), model.track_expert_usage() if tracks else nullcontext():  # type: ignore[operator]
        for test in tests:
            shown = progress.add_task(f"{label} on {test.name or settings.split}", total=len(test.rows), note="")
            file = None if keep is None else keep / f"{label}-{test.name or settings.split}.jsonl"
            kept = Kept(file, "" if keep is None else test.key(identity))
            scoring = Scoring(settings.batch_size, _shown(progress, shown), kept)
            found.append((test, test.task.evaluate(model, test.rows, processor, scoring)))
            progress.remove_task(shown)
    return Findings(found, usage_rows(model))


def _shown(progress: Progress, task: TaskID) -> Callable[[int, int], None]:
    return lambda done, total: progress.update(task, completed=done, total=total)


def usage_rows(model: nn.Module) -> list[dict[str, Any]]:
    """Return the expert usage collected so far, by all processes of a launch, as plain rows; empty for a model without experts."""
    get = getattr(model, "expert_usage", None)
    return [] if get is None else [asdict(row) for row in get(all_processes=processes.count() > 1)]


def write_predictions(folder: Path, findings: Findings) -> None:
    """Write a test's predictions, one JSON line per example, and what else it has for readers.

    Those of a recipe's own split lie in the folder itself, those of a named test in `tests/NAME`.
    """
    for test, scores in findings.found:
        place = folder / records.TESTS / test.name if test.name else folder
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in scores.predictions]
        records.write_text(place / records.PREDICTIONS, "\n".join(lines) + "\n")
        for name, text in scores.files.items():
            records.write_text(place / name, text)


def forget(keep: Path) -> None:
    """Remove the rows kept for continuing; every process must call it."""
    processes.wait()
    if processes.is_main():
        shutil.rmtree(keep, ignore_errors=True)
