"""What a task family is: data into batches, a trainer for them, and figures out of a trained model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import (
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from ..recipes.schema import TASKS, Data, TaskOptions
from .data import Splits, load_splits
from .kept import Kept

Progress = Callable[[int, int], None]
Processor = PreTrainedTokenizerBase | BaseImageProcessor


def nothing(done: int, total: int) -> None:
    """A progress that nobody watches."""


@dataclass(frozen=True)
class Scoring:
    """How an evaluation runs.

    Attributes:
        batch_size: examples (or sequences) per forward pass.
        progress: takes (done, total) rows of this process.
        kept: rows found so far; an evaluation that was killed continues from them.
    """

    batch_size: int = 32
    progress: Progress = nothing
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        metrics: name -> value; shares lie in [0, 1].
        predictions: one row per example in the data's order, each with `index` and, where right and wrong exist, `correct`.
        counts: whole numbers that belong beside the metrics, such as failed extractions.
        files: what else a reader wants, path beside the predictions -> text.
        note: a line for the reader, said after the figures.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    note: str = ""


class DataTask(TaskOptions):
    """Options that every family with rows of text has."""

    data: Data


class Task(ABC):
    """A task family bound to its options; `peft_type` is what PEFT calls its kind of model.

    `train_rows` says after `prepare(..., "train")` what became of the training rows, by `train` (used), `cut` (of those,
    shortened) and `dropped`; it stays empty for a family that does not count.
    """

    peft_type: ClassVar[TaskType | None]
    captures_steps: ClassVar[bool] = False  # whether its trainer is one of `CapturedSteps`

    def __init__(self, options: Any) -> None:
        self.options = options
        self.train_rows: dict[str, int] = {}

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """Name of the figure that stands for the task in averages and tables; `evaluate` always reports it."""

    def load(self, only: str | None = None, field: str = "task.data") -> Splits:
        """Read the rows, or those of the one split that is wanted; `field` names the data in messages."""
        return load_splits(self.options.data, only, field)

    def load_processor(self, path: str, settings: dict[str, Any]) -> Processor:
        """Load what turns rows into inputs: a tokenizer; one without a padding token pads with its end-of-text token."""
        tokenizer = AutoTokenizer.from_pretrained(path, **settings)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @abstractmethod
    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the base model with the head that the task needs."""

    @property
    def outputs(self) -> list[str | int] | None:
        """What the outputs of the model's head stand for, in their order; None for tasks that share a head."""
        return None

    def check(self, rows: Dataset) -> None:
        """Raise `UserError` where `evaluate` could not use the rows; it is called before a model is loaded."""

    @abstractmethod
    def prepare(self, rows: Dataset, processor: Any, split: str) -> Dataset:
        """Turn rows into what the trainer takes."""

    @abstractmethod
    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        processor: Any,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build the trainer; `arguments` are those of transformers' `TrainingArguments`."""

    @abstractmethod
    def evaluate(self, model: nn.Module, rows: Dataset, processor: Any, scoring: Scoring) -> Scores:
        """Score the model, in eval mode already, on raw rows and without gradients; all processes return the same."""


@dataclass(frozen=True)
class Family:
    """A registered task family: its name, its options and the class that does the work."""

    name: str
    description: str
    options: type[TaskOptions]
    task: type[Task]


def register(family: Family) -> Family:
    """Make a task family known to recipes."""
    return TASKS.register(family)


def bind(options: TaskOptions) -> Task:
    """Return the task that a recipe's options describe."""
    return TASKS[options.type].task(options)
