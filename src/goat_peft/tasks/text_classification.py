"""Text classification: one text or a template over columns, one label, a trainable head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from pydantic import Field, PositiveInt, model_validator
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
from .base import DataTask, Family, Progress, Scores, Task, register
from .data import fill, require_columns, template_columns
from .trainers import ClassificationTrainer


class TextClassificationOptions(DataTask):
    """One label per text."""

    type: Literal["text_classification"] = "text_classification"
    text: str = Field(description="a column's name, or a template such as 'premise: {sentence1} result:'")
    label: str = Field("label", description="the label's column")
    labels: list[str | int] = Field(
        description="values of the label column, in the order of the class ids", min_length=2
    )
    max_length: PositiveInt = Field(128, description="tokens; longer texts are cut")

    @model_validator(mode="after")
    def _labels_differ(self) -> TextClassificationOptions:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels={self.labels} holds a value twice; give each class once")
        return self


class TextClassification(Task):
    """Tokenise, train a classification head, report accuracy, F1 and Matthews correlation."""

    peft_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    main_metric: ClassVar[str] = "accuracy"

    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the encoder with a fresh head of one output per class."""
        names = {index: str(label) for index, label in enumerate(self.options.labels)}
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}, **settings
        )
        return model

    def prepare(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, split: str) -> Dataset:
        """Return rows of `input_ids`, `attention_mask` (as the tokenizer gives them), `length` and `labels`."""
        ids = self._class_ids(rows, split)
        encoded = tokenizer(self._texts(rows, split), truncation=True, max_length=self.options.max_length)
        columns = {name: encoded[name] for name in encoded}
        return Dataset.from_dict({**columns, "length": [len(row) for row in encoded["input_ids"]], "labels": ids})

    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build transformers' Trainer with padding to the longest of each batch."""
        return ClassificationTrainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_trainer_metrics,
            callbacks=callbacks,
        )

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress
    ) -> Scores:
        """Score in batches of like lengths; predictions come back in the data's order."""
        model.eval()
        encoded = self.prepare(rows, tokenizer, "evaluation")
        order = np.argsort([-length for length in encoded["length"]], kind="stable")
        truth = np.asarray(encoded["labels"])
        loader = DataLoader(
            encoded.select(order).remove_columns(["length", "labels"]),
            batch_size=batch_size,
            collate_fn=DataCollatorWithPadding(tokenizer),
        )
        device = next(model.parameters()).device
        chosen = []
        for batch in loader:
            chosen.append(model(**batch.to(device)).logits.argmax(-1).cpu())
            progress(sum(map(len, chosen)), len(truth))
        guesses = np.empty_like(truth)
        guesses[order] = torch.cat(chosen).numpy()
        names = self.options.labels
        predictions = [
            {"index": i, "label": names[t], "prediction": names[g], "correct": bool(t == g)}
            for i, (t, g) in enumerate(zip(truth, guesses, strict=True))
        ]
        return Scores(metrics(truth, guesses), predictions)

    def _texts(self, rows: Dataset, split: str) -> list[str]:
        if template_columns(self.options.text):
            texts = fill(self.options.text, rows, "task.text")
        else:
            require_columns(rows, [self.options.text], "task.text")
            texts = list(rows[self.options.text])
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"task.text={self.options.text}: row {index} of {split} is empty; leave it out of the data"
                )
        return texts

    def _class_ids(self, rows: Dataset, split: str) -> list[int]:
        require_columns(rows, [self.options.label], "task.label")
        ids = {value: index for index, value in enumerate(self.options.labels)}
        values = rows[self.options.label]
        for index, value in enumerate(values):
            if value not in ids:
                raise UserError(
                    f"task.labels={self.options.labels}: row {index} of {split} has {self.options.label}={value!r}; "
                    f"add it, or filter with keep ({closest(str(value), map(str, ids))})"
                )
        return [ids[value] for value in values]


def metrics(truth: np.ndarray, guesses: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 (of class 1 for two classes, macro for more) and Matthews correlation."""
    average = "binary" if max(truth.max(), guesses.max()) <= 1 else "macro"
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "f1": float(f1_score(truth, guesses, average=average, zero_division=0.0)),
        "matthews": float(matthews_corrcoef(truth, guesses)),
    }


def _trainer_metrics(outcome: EvalPrediction) -> dict[str, float]:
    logits = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
    return metrics(np.asarray(outcome.label_ids), logits.argmax(-1))


register(
    Family(
        name="text_classification",
        description="one label per text; accuracy, F1, Matthews correlation",
        options=TextClassificationOptions,
        task=TextClassification,
    )
)
