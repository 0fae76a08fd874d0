"""A recipe becomes a run: model, data, training, evaluation, and the run folder with all of it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from .. import records
from ..errors import UserError, first_line
from ..methods import Method
from ..recipes import Recipe
from ..recipes.schema import METHODS
from ..reporting import pictures
from ..tasks import Scores, Splits, Task, bind
from . import record
from .callbacks import Bar, CleanStop, FiniteLoss, Interrupted, WholeCheckpoints, bar
from .evaluation import score, usage_rows
from .folder import RunFolder, open_folder
from .loading import device, load_base, load_tokenizer, quiet_libraries

# In the order of preference; transformers lists the new name first.
CHECKPOINTING_NAMES = ("activation_checkpointing", "gradient_checkpointing")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its `result.json` as read back."""

    path: Path
    result: dict[str, Any]


def train(recipe: Recipe, resume: bool = False, overwrite: bool = False) -> Run:
    """Run a recipe from start to end and return what it wrote.

    Raises:
        UserError: the recipe, data, model or folder cannot work; the message says what would.
        Interrupted: the user stopped the run with Ctrl-C.
    """
    folder, checkpoint = open_folder(recipe, resume, overwrite)
    started, clock = record.now(), time.perf_counter()
    with quiet_libraries(), bar() as progress:
        return _Session(recipe, folder, checkpoint, progress).run(started, clock)


class _Session:
    """State that the phases of one run share."""

    def __init__(self, recipe: Recipe, folder: RunFolder, checkpoint: Path | None, progress: Progress) -> None:
        self.recipe, self.folder, self.checkpoint, self.progress = recipe, folder, checkpoint, progress
        self.task: Task = bind(recipe.task)
        self.method: Method = METHODS[recipe.method.name]

    def run(self, started: str, clock: float) -> Run:
        """Load, train, score, write."""
        splits = self.task.load()
        splits.named(self.recipe.evaluation.split)
        tokenizer = load_tokenizer(self.recipe.model)
        model = self._base_model(tokenizer)
        untrained = self._untrained(model, splits, tokenizer)
        # Seeded again: the draws of the adapter and of the batches do not depend on whether the base was scored.
        set_seed(self.recipe.training.seed)
        model = self._apply_method(model)
        trainer, seconds = self._train(model, splits, tokenizer)
        saved = self.folder.adapter if self.method.saves_adapter else self.folder.model
        model.save_pretrained(saved)
        training_usage = usage_rows(model)
        scores, usage = score(self.task, model, splits, tokenizer, self.recipe.evaluation, self.progress)
        usage = {"train": training_usage, self.recipe.evaluation.split: usage}
        result = self._result(model, trainer, scores, untrained, started, clock, seconds, saved)
        self._write(result, scores, usage)
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        return Run(self.folder.path, result)

    def _base_model(self, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
        # Before the model: a classification head is drawn at random, and must be the same for every method.
        set_seed(self.recipe.training.seed)
        return load_base(self.recipe.model, self.task, tokenizer).to(device())

    def _apply_method(self, model: nn.Module) -> nn.Module:
        try:
            return self.method.build(model, self.recipe.method, self.task.peft_type)
        except ValueError as error:
            # What only the model can tell, such as a rank that its smallest layer cannot hold.
            told = first_line(error)
            if told.startswith("GoatConfig."):
                raise UserError(f"method.{told.removeprefix('GoatConfig.')}") from error
            targets = getattr(self.recipe.method, "target_modules", None)
            raise UserError(f"method.target_modules={targets}: {told}") from error

    def _untrained(self, model: nn.Module, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> Scores | None:
        if not self.recipe.evaluation.untrained:
            return None
        return score(self.task, model, splits, tokenizer, self.recipe.evaluation, self.progress, "untrained")[0]

    def _train(self, model: nn.Module, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> tuple[Trainer, float]:
        stop = CleanStop()
        watch_validation = splits.validation is not None and self.recipe.evaluation.every_steps != 0
        trainer = self.task.trainer(
            model,
            training_arguments(self.recipe, self.folder, watch_validation),
            self.task.prepare(splits.train, tokenizer, "train"),
            self.task.prepare(splits.validation, tokenizer, "validation") if watch_validation else None,
            tokenizer,
            [Bar(self.progress, f"train {self.method.name}"), WholeCheckpoints(), stop, FiniteLoss()],
        )
        trainer.remove_callback(PrinterCallback)
        begin = time.perf_counter()
        with stop:
            output = trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if stop.asked and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        if not all(torch.isfinite(parameter).all() for parameter in trained):
            raise UserError(
                f"training.learning_rate={self.recipe.training.learning_rate}: trained weights are not finite after step {trainer.state.global_step} "
                f"(mean loss {output.training_loss:.4g}); try a smaller learning rate or a longer warmup"
            )
        return trainer, time.perf_counter() - begin

    def _result(
        self,
        model: nn.Module,
        trainer: Trainer,
        scores: Scores,
        untrained: Scores | None,
        started: str,
        clock: float,
        seconds: float,
        saved: Path,
    ) -> dict[str, Any]:
        """Build the three blocks; the last row of `metrics` holds the final figures."""
        split = "test" if self.recipe.evaluation.split == "test" else "valid"
        rows = record.history_rows(trainer.state.log_history)
        if untrained is not None:
            rows.insert(0, {"step": 0, **{f"untrained {split} {k}": v for k, v in untrained.metrics.items()}})
        final: dict[str, Any] = {f"{split} {name}": value for name, value in (scores.metrics | scores.counts).items()}
        final |= {f"{split} samples": len(scores.predictions)}
        losses = [row["train loss"] for row in rows if "train loss" in row]
        rows.append({"step": trainer.state.global_step, **final, "train loss": losses[-1] if losses else None})
        trainable, total = record.parameter_counts(model)
        return {
            "run_info": {
                "created_at": started,
                "total_time": time.perf_counter() - clock,
                "experiment_name": f"{self.recipe.name}/{self.method.name}",
                "command": record.command(),
                "train_config": self.recipe.model_dump(mode="json"),
                "peft_config": record.peft_config(model),
                "resumed_from": self.checkpoint.name if self.checkpoint else None,
                "error_msg": "",
            },
            "train_info": {
                **record.memory_block(),
                "train_time": seconds,
                "file_size": record.size_of(saved),
                "num_trainable_params": trainable,
                "num_total_params": total,
                "status": "success",
                "metrics": rows,
            },
            "meta_info": record.meta_info(self.recipe),
        }

    def _write(self, result: dict[str, Any], scores: Scores, usage: dict[str, Any]) -> None:
        """Write everything a reader wants; the result last, since its presence says that the run is finished."""
        path = self.folder.path
        write_predictions(path, scores)
        pictures.curve(result, path / records.CURVE_PICTURE)
        if any(usage.values()):
            records.write_json(path / records.EXPERT_USAGE, usage)
            shown = usage[self.recipe.evaluation.split] or usage["train"]
            pictures.experts(shown, path / records.EXPERTS_PICTURE, f"{self.recipe.name}: share of tokens per expert")
        records.write_json(path / records.RESULT, result)


def write_predictions(path: Path, scores: Scores) -> None:
    """Write one JSON line per scored example."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in scores.predictions]
    records.write_text(path / records.PREDICTIONS, "\n".join(lines) + "\n")


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
        "bf16": settings.bf16,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
        "seed": settings.seed,
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if settings.save_steps == 0 else "epoch" if settings.save_steps is None else "steps",
        "save_total_limit": 2,
        "eval_strategy": _eval_strategy(scoring.every_steps) if watch_validation else "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    # Renamed during transformers 5; the old name warns where the new one exists. Given even when off: TRL's default is on.
    name = next(f.name for f in fields(TrainingArguments) if f.name in CHECKPOINTING_NAMES)
    arguments[name] = settings.gradient_checkpointing
    if settings.gradient_checkpointing:
        arguments[f"{name}_kwargs"] = {"use_reentrant": False}
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
