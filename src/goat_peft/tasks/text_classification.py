"""Text classification: one text or a template over columns, one label or number, a trainable head."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from pydantic import Field, PositiveInt, model_validator
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..errors import UserError, closest
from . import processes
from .base import DataTask, Family, Scores, Scoring, Task, register
from .captured import FewLengths
from .data import fill, require_columns, template_columns
from .decoding import eval_mode
from .trainers import ClassificationTrainer, on_one_device


class TextClassificationOptions(DataTask):
    """One label, or one number, per text."""

    type: Literal["text_classification"] = "text_classification"
    text: str = Field(description="a column's name, or a template such as 'premise: {sentence1} result:'")
    label: str = Field("label", description="the label's column")
    labels: list[str | int] | None = Field(
        description="values of the label column, in the order of the class ids; null when it holds a number to predict",
        min_length=2,
    )
    metrics: list[str] = Field(
        [],
        description="figures reported, the one that stands for the task first; all of the task's kind when not given",
    )
    max_length: PositiveInt = Field(128, description="tokens; longer texts are cut")

    @model_validator(mode="after")
    def _labels_differ(self) -> TextClassificationOptions:
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels={self.labels} holds a value twice; give each class once")
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> TextClassificationOptions:
        known = CORRELATIONS if self.labels is None else CLASS_FIGURES
        for name in self.metrics:
            if name not in known:
                raise ValueError(f"metrics={name}: not a figure of this kind of label; {closest(name, known)}")
        self.metrics = self.metrics or list(known)
        return self


class TextClassification(Task):
    """Tokenise, train a classification or regression head, report the figures that the options name."""

    peft_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    captures_steps: ClassVar[bool] = True

    @property
    def main_metric(self) -> str:
        """The first figure named."""
        return self.options.metrics[0]

    @property
    def outputs(self) -> list[str | int]:
        """One output per class, or one for a number."""
        return ["a number"] if self.options.labels is None else self.options.labels

    def check(self, rows: Dataset) -> None:
        """Every row has a text and a known label, or a number."""
        self._truth(rows, "evaluation")
        self._texts(rows, "evaluation")

    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the encoder with a fresh head: one output per class, or one for a number."""
        if self.options.labels is None:
            head: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
        else:
            names = {index: str(label) for index, label in enumerate(self.options.labels)}
            head = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
        return AutoModelForSequenceClassification.from_pretrained(path, **head, **settings)

    def prepare(self, rows: Dataset, processor: PreTrainedTokenizerBase, split: str) -> Dataset:
        """Return rows of `input_ids`, `attention_mask` (as the tokenizer gives them), `length` and `labels`.

        `train_rows` counts the texts cut at `max_length` (0 from a tokenizer that does not tell: those written in Python).
        """
        truth = self._truth(rows, split)
        encoded = processor(self._texts(rows, split), truncation=True, max_length=self.options.max_length)
        if split == "train":
            longer = sum(bool(row.overflowing) for row in encoded.encodings or ())
            self.train_rows = {"train": len(rows), "cut": longer, "dropped": 0}
        columns = {name: encoded[name] for name in encoded}
        return Dataset.from_dict({**columns, "length": [len(row) for row in encoded["input_ids"]], "labels": truth})

    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        processor: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build transformers' Trainer with padding to the longest of each batch."""
        return TextTrainer(
            model=model,
            args=on_one_device(TrainingArguments(**arguments)),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(processor),
            compute_metrics=self._trainer_figures,
            callbacks=callbacks,
        )

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, rows: Dataset, processor: PreTrainedTokenizerBase, scoring: Scoring) -> Scores:
        """Score in batches of like lengths; predictions come back in the data's order."""
        encoded = self.prepare(rows, processor, "evaluation")
        mine = processes.share(scoring.kept.missing(len(rows)))
        lengths, truth = encoded["length"], list(encoded["labels"])
        order = sorted(mine, key=lambda index: -lengths[index])
        loader = DataLoader(
            encoded.select(order).remove_columns(["length", "labels"]),
            batch_size=scoring.batch_size,
            collate_fn=DataCollatorWithPadding(processor),
        )
        device = next(model.parameters()).device
        scored = 0
        with eval_mode(model):
            for batch in loader:
                outputs = self._decide(model(**batch.to(device)).logits)
                places = order[scored : scored + len(outputs)]
                scoring.kept.add([self._row(i, truth[i], out) for i, out in zip(places, outputs, strict=True)])
                scored += len(outputs)
                scoring.progress(scored, len(order))
        predictions = scoring.kept.rows()
        names = self.options.labels
        guesses = [row["prediction"] if names is None else names.index(row["prediction"]) for row in predictions]
        return Scores(figures(self.options.metrics, truth, guesses, names), predictions)

    def _decide(self, logits: torch.Tensor) -> list[Any]:
        """Class ids, or numbers, from logits (rows, outputs)."""
        return (logits.squeeze(-1).float() if self.options.labels is None else logits.argmax(-1)).tolist()

    def _row(self, index: int, truth: Any, output: Any) -> dict[str, Any]:
        names = self.options.labels
        if names is None:
            return {"index": index, "label": truth, "prediction": output}
        return {"index": index, "label": names[truth], "prediction": names[output], "correct": truth == output}

    def _trainer_figures(self, outcome: EvalPrediction) -> dict[str, float]:
        logits = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
        return figures(
            self.options.metrics,
            np.asarray(outcome.label_ids).tolist(),
            self._decide(torch.as_tensor(logits)),
            self.options.labels,
        )

    def _texts(self, rows: Dataset, split: str) -> list[str]:
        if template_columns(self.options.text):
            texts = fill(self.options.text, rows, "task.text")
        else:
            require_columns(rows, [self.options.text], "task.text")
            texts = list(rows[self.options.text])
        for index, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"task.text={self.options.text}: row {index} of {split} holds {text!r}, which is no text; name another column"
                )
            if text is None or not text.strip():
                raise UserError(
                    f"task.text={self.options.text}: row {index} of {split} is empty; leave it out of the data"
                )
        return texts

    def _truth(self, rows: Dataset, split: str) -> list[Any]:
        """Class ids, or numbers, of the label column; a row without a usable one is an error."""
        require_columns(rows, [self.options.label], "task.label")
        values = rows[self.options.label]
        if self.options.labels is None:
            for index, value in enumerate(values):
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise UserError(
                        f"task.label={self.options.label}: row {index} of {split} has {value!r}, which is no number; "
                        "leave it out, or name the classes in task.labels"
                    )
            return [float(value) for value in values]
        ids = {value: index for index, value in enumerate(self.options.labels)}
        for index, value in enumerate(values):
            if value not in ids:
                raise UserError(
                    f"task.labels={self.options.labels}: row {index} of {split} has {self.options.label}={value!r}; "
                    f"add it, or filter with keep ({closest(str(value), map(str, ids))})"
                )
        return [ids[value] for value in values]


class TextTrainer(ClassificationTrainer):
    """Trainer that pads to few lengths where steps are captured, as each needs a graph."""

    def capture_steps(self, tell: Callable[[str], None]) -> bool:
        """As `CapturedSteps` has it."""
        captures = super().capture_steps(tell)
        if captures:
            self.data_collator = FewLengths(self.data_collator, max(self.train_dataset["length"]))  # type: ignore[index]
        return captures


def figures(names: list[str], truth: list[Any], guesses: list[Any], labels: list[Any] | None) -> dict[str, float]:
    """The named figures of class ids, or of numbers when there are no labels."""
    if labels is None:
        return {name: CORRELATIONS[name](truth, guesses) for name in names}
    return {name: CLASS_FIGURES[name](truth, guesses, len(labels)) for name in names}


def _accuracy(truth: list[int], guesses: list[int], classes: int) -> float:
    return float(accuracy_score(truth, guesses))


def _f1(truth: list[int], guesses: list[int], classes: int) -> float:
    """Of class 1 for two classes; the mean over the classes (macro) for more."""
    average = "binary" if classes == 2 else "macro"
    return float(f1_score(truth, guesses, average=average, zero_division=0.0))


def _matthews(truth: list[int], guesses: list[int], classes: int) -> float:
    return float(matthews_corrcoef(truth, guesses))


def _correlation(measure: Callable[[Any, Any], Any], truth: list[float], guesses: list[float]) -> float:
    """A correlation; 0 where one side is constant, for which it is not defined."""
    if len(set(truth)) < 2 or len(set(guesses)) < 2:
        return 0.0
    return float(measure(truth, guesses).statistic)


CLASS_FIGURES = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}
CORRELATIONS = {"pearson": partial(_correlation, pearsonr), "spearman": partial(_correlation, spearmanr)}


register(
    Family(
        name="text_classification",
        description="one label (or number) per text; accuracy, F1, correlations",
        options=TextClassificationOptions,
        task=TextClassification,
    )
)
