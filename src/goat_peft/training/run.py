"""A recipe becomes a run: model, data, training, evaluation, and the run folder with all of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from .. import records
from ..adapter import initialize_together
from ..errors import UserError, first_line
from ..methods import Method
from ..recipes import Recipe
from ..recipes.schema import METHODS
from ..reporting import pictures
from ..tasks import Processor, Splits, Task, bind, processes
from . import digests, engines, record
from .callbacks import Bar, CleanStop, CollapsedRouters, Divergence, Interrupted, bar
from .checkpoints import WholeCheckpoints, remove_unsealed
from .disk import full_disk_explained
from .evaluation import Findings, Test, forget, open_tests, score, usage_rows, write_predictions
from .folder import RunFolder, open_folder
from .loading import device, in_recipe_dtype, load_base, load_processor, load_trained, quiet_libraries
from .resuming import ExactResume
from .trackers import Trackers

# In the order of preference; transformers lists the new name first.
CHECKPOINTING_NAMES = ("activation_checkpointing", "gradient_checkpointing")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its `result.json` as read back."""

    path: Path
    result: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What training found, in the form of `trained.json`; with the saved weights, all that scoring and the result need.

    Attributes:
        rows: rows of the log, as `result.json` has them.
        steps: optimiser steps.
        seconds: time of the training alone.
        usage: expert usage while training.
        counts: trainable parameters and all parameters.
        peft_config: the adapter's settings, or None.
        memory: peak memory of the accelerator.
        resumed_from: the checkpoint that training started from, or None.
        examples: `Task.train_rows`; empty for a family that does not count.
        notes: what a reader should know of the training, such as routers that collapsed.
    """

    rows: list[dict[str, Any]]
    steps: int
    seconds: float
    usage: list[dict[str, Any]]
    counts: tuple[int, int]
    peft_config: dict[str, Any] | None
    memory: dict[str, int]
    resumed_from: str | None
    examples: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def train(recipe: Recipe, resume: bool = False, overwrite: bool = False) -> Run:
    """Run a recipe from start to end and return what it wrote.

    With `resume`, training continues from its last whole checkpoint; when it was finished, only the scoring continues.

    Raises:
        UserError: the recipe, data, model or folder cannot work; the message says what would.
        Interrupted: the user stopped the run with Ctrl-C.
    """
    if recipe.evaluation.folder is not None and not recipe.evaluation.tests:
        raise UserError(
            f"evaluation.folder={recipe.evaluation.folder}: needs evaluation.tests; give task.data.folder for the task's own rows"
        )
    engines.check_precision(recipe.training)
    engines.check_graphs(recipe.training)
    folder, checkpoint = _open(recipe, resume, overwrite)
    started, clock = record.now(), time.perf_counter()
    room = full_disk_explained(f"output_dir={folder.path}", lambda: _after_full_disk(folder))
    with room, quiet_libraries(), bar() as progress, Trackers(list(recipe.training.report_to), folder.path) as trackers:
        for note in folder.notes if processes.is_main() else ():
            progress.console.print(note, markup=False, soft_wrap=True)
        return _Session(recipe, folder, checkpoint, progress, trackers).run(started, clock)


def _open(recipe: Recipe, resume: bool, overwrite: bool) -> tuple[RunFolder, Path | None]:
    """Open the run folder in one process, for all of a launch."""
    found: tuple[RunFolder, Path | None] | str = ""
    if processes.is_main():
        try:
            with full_disk_explained("output_dir", lambda: "free some space and start again"):
                found = open_folder(recipe, resume, overwrite, lambda: _check_inputs(recipe))
        except UserError as error:
            found = str(error)
    found = processes.broadcast(found)
    if isinstance(found, str):
        raise UserError(found)
    return found


def _check_inputs(recipe: Recipe) -> None:
    """Raise `UserError` for rows, tests or a model that are not there, as a run would once its folder is open."""
    task = bind(recipe.task)
    open_tests(task, recipe.evaluation, task.load())
    load_processor(recipe.model, task)


def _after_full_disk(folder: RunFolder) -> str:
    """Remove what was being written, and say what is left to continue from."""
    if processes.is_main():
        remove_unsealed(folder.checkpoints)
        folder.tidy()
    if folder.trained.is_file():
        return "the trained weights are saved; free some space, then continue with --resume"
    last = folder.last_checkpoint()
    if last is None:
        return "no checkpoint is whole yet; free some space and start again"
    return f"{last.name} is whole; free some space, then continue with --resume"


class _Session:
    """State that the phases of one run share."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, checkpoint: Path | None, progress: Progress, trackers: Trackers
    ) -> None:
        self.recipe, self.folder, self.checkpoint = recipe, folder, checkpoint
        self.progress, self.trackers = progress, trackers
        self.task: Task = bind(recipe.task)
        self.method: Method = METHODS[recipe.method.name]
        self.collapsed = CollapsedRouters(self._tell)

    def run(self, started: str, clock: float) -> Run:
        """Load, train, score, write."""
        if processes.count() == 1 and torch.cuda.device_count() > 1:
            self._tell(f"of {torch.cuda.device_count()} GPUs one is used; `goat launch ddp` uses them all")
        splits = self.task.load()
        tests = open_tests(self.task, self.recipe.evaluation, splits)
        processor = load_processor(self.recipe.model, self.task)
        if self.folder.trained.is_file():
            trained = Trained(**records.read_json(self.folder.trained))
            model = load_trained(self.recipe, self.folder.path, self.task, processor).to(device())
        else:
            trained, model = self._from_the_base(splits, tests, processor)
        identity = {"base": digests.of_base(self.recipe.model), "weights": digests.of_saved(self.folder.path)}
        findings = self._score(model, tests, processor, "score", identity)
        final = findings.row(self._prefix)
        self.trackers.log(findings.metrics | findings.counts, trained.steps, self._arguments(), model)
        result = self._result(trained, final, findings, started, clock)
        if processes.is_main():
            self._write(result, findings, {"train": trained.usage, self.recipe.evaluation.split: findings.usage})
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
            self.folder.trained.unlink(missing_ok=True)
        forget(self.folder.scoring)
        return Run(self.folder.path, result)

    @property
    def _prefix(self) -> str:
        """What the names of the final figures begin with."""
        return "test" if self.recipe.evaluation.split == "test" else "valid"

    def _from_the_base(self, splits: Splits, tests: list[Test], processor: Processor) -> tuple[Trained, nn.Module]:
        """Load the base, score it if wanted, train it and save what was trained."""
        model = self._base_model(processor)
        rows = []
        if self.recipe.evaluation.untrained:
            identity = {"base": digests.of_base(self.recipe.model), "seed": self.recipe.training.seed}
            untrained = self._score(model, tests, processor, "untrained", identity)
            row = untrained.row(f"untrained {self._prefix}")
            rows.append({"step": 0, **row})
        # Seeded again: the draws of the adapter and of the batches do not depend on whether the base was scored.
        set_seed(self.recipe.training.seed)
        model = self._apply_method(model)
        counts = record.parameter_counts(model)
        trainer, seconds, whole = self._train(model, splits, processor)
        trained = Trained(
            rows=rows + record.history_rows(trainer.state.log_history),
            steps=trainer.state.global_step,
            seconds=seconds,
            usage=usage_rows(model),
            counts=counts,
            peft_config=record.peft_config(model),
            memory=record.memory_block(),
            resumed_from=self.checkpoint.name if self.checkpoint else None,
            examples=self.task.train_rows,
            notes=[*getattr(trainer, "notes", ()), *self.collapsed.notes],
        )
        if processes.is_main():
            with self.folder.saving(self.method.saves_adapter) as place:
                model.save_pretrained(place, state_dict=whole)  # type: ignore[operator]
            # After the weights: where this file lies, they are whole.
            records.write_json(self.folder.trained, asdict(trained))
            self.folder.publish()
        processes.wait()
        if whole is not None:
            del model, trainer  # spread over the processes; each scores its part of the rows with a whole model
            engines.let_go()
            return trained, load_trained(self.recipe, self.folder.path, self.task, processor).to(device())
        if not self.method.saves_adapter:
            # Scored as `goat eval` will load it, so that both find the same figures.
            in_recipe_dtype(model, self.recipe.model)
        return trained, model

    def _tell(self, note: str) -> None:
        """Write a line above the progress bar."""
        if processes.is_main():
            self.progress.console.print(note, markup=False, soft_wrap=True)

    def _base_model(self, processor: Processor) -> nn.Module:
        # Before the model: a classification head is drawn at random, and must be the same for every method.
        set_seed(self.recipe.training.seed)
        return load_base(self.recipe.model, self.task, processor).to(device())

    def _apply_method(self, model: nn.Module) -> nn.Module:
        try:
            with initialize_together():
                return self.method.build(model, self.recipe.method, self.task.peft_type)
        except ValueError as error:
            # What only the model can tell, such as a rank that its smallest layer cannot hold.
            told = first_line(error)
            if told.startswith("GoatConfig."):
                raise UserError(f"method.{told.removeprefix('GoatConfig.')}") from error
            targets = getattr(self.recipe.method, "target_modules", None)
            raise UserError(f"method.target_modules={targets}: {told}") from error

    def _score(self, model: nn.Module, tests: list[Test], processor: Processor, label: str, identity: Any) -> Findings:
        settings, keep = self.recipe.evaluation, self.folder.scoring
        return score(model, tests, processor, settings, self.progress, label, keep, identity)

    def _arguments(self) -> TrainingArguments:
        """The trainer's arguments as the trackers want them."""
        return TrainingArguments(**training_arguments(self.recipe, self.folder, False))

    def _train(
        self, model: nn.Module, splits: Splits, processor: Processor
    ) -> tuple[Trainer, float, dict[str, Tensor] | None]:
        """Train; return the trainer, the seconds it took, and what was trained where an engine has spread it over processes."""
        stop = CleanStop()
        if self.recipe.training.bf16 and engines.shards():
            engines.autocast_inside(model)
        train = splits.named("train")
        watch_validation = splits.validation is not None and self.recipe.evaluation.every_steps != 0
        trainer = self.task.trainer(
            model,
            training_arguments(self.recipe, self.folder, watch_validation),
            self.task.prepare(train, processor, "train"),
            self.task.prepare(splits.validation, processor, "validation") if watch_validation else None,
            processor,
            [
                Bar(self.progress, f"train {self.method.name}"),
                stop,
                ExactResume(self.checkpoint),
                WholeCheckpoints(),
                Divergence(),
                self.collapsed,
            ],
        )
        trainer.rates = self.recipe.training.rates  # type: ignore[attr-defined]
        trainer.rate_factors = self.recipe.training.rate_factors  # type: ignore[attr-defined]
        if self.recipe.training.cuda_graphs:
            trainer.capture_steps(self._tell)  # type: ignore[attr-defined]
        trainer.remove_callback(PrinterCallback)
        for callback in self.trackers.callbacks:
            trainer.add_callback(callback)
        begin = time.perf_counter()
        with stop:
            output = trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if stop.asked and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
        seconds = time.perf_counter() - begin
        whole = engines.whole_trained_state(model) if engines.shards() else None
        trained = [p for p in model.parameters() if p.requires_grad] if whole is None else whole.values()
        if not all(torch.isfinite(tensor).all() for tensor in trained):
            raise UserError(
                f"training.learning_rate={self.recipe.training.learning_rate}: trained weights are not finite after step {trainer.state.global_step} "
                f"(mean loss {output.training_loss:.4g}); try a smaller learning rate or a longer warmup"
            )
        return trainer, seconds, whole

    def _result(
        self, trained: Trained, final: dict[str, Any], findings: Findings, started: str, clock: float
    ) -> dict[str, Any]:
        """Build the three blocks; the last row of `metrics` holds the final figures."""
        losses = [row["train loss"] for row in trained.rows if "train loss" in row]
        rows = [*trained.rows, {"step": trained.steps, **final, "train loss": losses[-1] if losses else None}]
        trainable, total = trained.counts
        return {
            "run_info": {
                "created_at": started,
                "total_time": time.perf_counter() - clock,
                "experiment_name": f"{self.recipe.name}/{self.method.name}",
                "command": record.command(),
                "train_config": self.recipe.model_dump(mode="json"),
                "peft_config": trained.peft_config,
                "resumed_from": trained.resumed_from,
                "notes": [*self.folder.notes, *trained.notes, *findings.notes],
                "error_msg": "",
            },
            "train_info": {
                **trained.memory,
                "train_time": trained.seconds,
                "file_size": record.size_of(self.folder.adapter if self.method.saves_adapter else self.folder.model),
                "num_trainable_params": trainable,
                "num_total_params": total,
                "status": "success",
                **({"rows": trained.examples} if trained.examples else {}),
                "metrics": rows,
            },
            "meta_info": record.meta_info(self.recipe),
        }

    def _write(self, result: dict[str, Any], findings: Findings, usage: dict[str, Any]) -> None:
        """Write everything a reader wants; the result last, since its presence says that the run is finished."""
        path = self.folder.path
        write_predictions(path, findings)
        pictures.curve(result, path / records.CURVE_PICTURE)
        if any(usage.values()):
            records.write_json(path / records.EXPERT_USAGE, usage)
            shown = usage[self.recipe.evaluation.split] or usage["train"]
            pictures.experts(shown, path / records.EXPERTS_PICTURE, f"{self.recipe.name}: share of tokens per expert")
        records.write_json(path / records.RESULT, result)


def training_arguments(recipe: Recipe, folder: RunFolder, watch_validation: bool) -> dict[str, Any]:
    """Translate a recipe's `training` and `evaluation` blocks into transformers' `TrainingArguments`."""
    settings, scoring = recipe.training, recipe.evaluation
    epochs = 3.0 if settings.epochs is None and settings.max_steps is None else settings.epochs
    arguments: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": scoring.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.bf16 and not engines.shards(),
        "fp16": settings.fp16,
        "ddp_broadcast_buffers": False,  # all that GOAT has are constant, and as large as the experts
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
        "seed": settings.seed,
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if settings.save_steps == 0 else "epoch" if settings.save_steps is None else "steps",
        # No save_total_limit: `WholeCheckpoints` removes old ones, once the new one is whole.
        "eval_strategy": _eval_strategy(scoring.every_steps) if watch_validation else "no",
        "run_name": recipe.name,
        "report_to": [],  # trackers are callbacks of our own: they outlive the trainer, for the final figures
        "disable_tqdm": True,
    }
    # Renamed during transformers 5; the old name warns where the new one exists. Given even when off: TRL's default is on.
    name = next(f.name for f in fields(TrainingArguments) if f.name in CHECKPOINTING_NAMES)
    arguments[name] = settings.gradient_checkpointing
    if settings.gradient_checkpointing:
        arguments[f"{name}_kwargs"] = {"use_reentrant": False}
    if any(field.name == "project" for field in fields(TrainingArguments)):
        arguments["project"] = "goat-peft"
    if settings.max_steps is not None:
        arguments["max_steps"] = settings.max_steps
    else:
        arguments["num_train_epochs"] = epochs
    if settings.save_steps:
        arguments["save_steps"] = settings.save_steps
    if watch_validation and scoring.every_steps:
        arguments["eval_steps"] = scoring.every_steps
    return arguments


def _eval_strategy(every_steps: int | None) -> str:
    return "epoch" if every_steps is None else "steps"
