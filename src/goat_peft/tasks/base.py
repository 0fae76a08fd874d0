"""What a task family is: data into batches, a trainer for them, and figures out of a trained model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..recipes.schema import TASKS, Data, TaskOptions
from .data import Splits, load_splits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        metrics: name -> value; shares lie in [0, 1].
        predictions: one row per example in the data's order, each with `correct`.
        counts: whole numbers that belong beside the metrics, such as failed extractions.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)


class DataTask(TaskOptions):
    """Options that every family with rows of text has."""

    data: Data


class Task(ABC):
    """A task family bound to its options."""

    peft_type: ClassVar[TaskType]
    main_metric: ClassVar[str]

    def __init__(self, options: Any) -> None:
        self.options = options

    def load(self) -> Splits:
        """Read the rows."""
        return load_splits(self.options.data)

    @abstractmethod
    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the base model with the head that the task needs."""

    @abstractmethod
    def prepare(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, split: str) -> Dataset:
        """Turn rows into what the trainer takes."""

    @abstractmethod
    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build the trainer; `arguments` are those of transformers' `TrainingArguments`."""

    @abstractmethod
    def evaluate(
        self,
        model: nn.Module,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        progress: Progress,
    ) -> Scores:
        """Score the model on raw rows, in eval mode and without gradients; `progress` takes (done, total)."""


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
