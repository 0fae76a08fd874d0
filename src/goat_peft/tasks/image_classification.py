"""Image classification: one image, one label, a trainable head on any image model of transformers."""

from __future__ import annotations

import inspect
import os
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from peft import TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from sklearn.metrics import accuracy_score, recall_score
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate
from transformers import (
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..errors import UserError
from . import processes
from .base import DataTask, Family, Scores, Scoring, Task, register
from .data import Splits, require_columns
from .images import ImageRows, Preprocessing, load_preprocessing, named_preprocessing
from .trainers import ClassificationTrainer, on_one_device

MOST_WORKERS = 8


class ImageClassificationOptions(DataTask):
    """One label per image."""

    type: Literal["image_classification"] = "image_classification"
    image: str = Field("image", description="column of images: encoded bytes, or paths")
    label: str = Field("label", description="column of labels")
    labels: list[str | int] | None = Field(
        None,
        description="names of the classes in the order of their ids; the data's own (or the folders') when not given",
        min_length=2,
    )
    num_classes: PositiveInt | None = Field(
        None, description="classes that the data must have; enough by itself for a column of ids from 0", ge=2
    )
    image_size: PositiveInt | None = Field(
        None, description="side in pixels of what the model sees; its processor's when not given"
    )
    normalization: Literal["model", "imagenet", "clip", "half"] = Field(
        "model", description="whose mean and deviation: the model's processor's, or known ones (half is 0.5 and 0.5)"
    )
    crop_scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.9, 1.0), description="share of the area that a training image's random crop keeps, from and to"
    )
    workers: NonNegativeInt | None = Field(
        None,
        description="processes that decode, for each process that trains; when not given, as many as there are cores, at "
        f"most {MOST_WORKERS}, beside an accelerator, and 0 without one",
    )

    @model_validator(mode="after")
    def _agree(self) -> ImageClassificationOptions:
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels={self.labels} holds a value twice; give each class once")
        if self.labels is not None and self.num_classes not in (None, len(self.labels)):
            raise ValueError(
                f"num_classes={self.num_classes}: labels names {len(self.labels)} classes; give one of them"
            )
        if not self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale={list(self.crop_scale)}: give two rising shares of at most 1, such as [0.9, 1]"
            )
        if self.normalization != "model" and self.image_size is None:
            raise ValueError(f"normalization={self.normalization}: image_size must be given with it, such as 224")
        return self


class ImageClassification(Task):
    """Crop, train a classification head beside the adapter, report accuracy over images and over classes.

    PEFT has no task type for images: its general model is used, and the methods name the head among the modules to
    save.
    """

    peft_type: ClassVar[TaskType | None] = None
    captures_steps: ClassVar[bool] = True
    main_metric = "accuracy"

    _names: list[str | int] | None = None

    def load(self, only: str | None = None, field: str = "task.data") -> Splits:
        """Read the rows, images still encoded; the classes are those of the training rows, whatever split is wanted."""
        splits = super().load(only, field)
        if self.options.labels is not None:
            self._names = self.options.labels
        else:
            self._names = self._class_names(self._training_rows(splits, field))
        return splits

    @property
    def names(self) -> list[str | int]:
        """The classes in the order of their ids."""
        if self._names is None:
            self.load()
        assert self._names is not None
        return self._names

    @property
    def outputs(self) -> list[str | int]:
        """One output per class."""
        return self.names

    def check(self, rows: Dataset) -> None:
        """Every row has a known class."""
        require_columns(rows, [self.options.image], "task.image")
        self._class_ids(rows, "evaluation")

    def load_processor(self, path: str, settings: dict[str, Any]) -> Preprocessing:  # type: ignore[override]
        """Find out what the model expects of an image."""
        if self.options.normalization == "model":
            return load_preprocessing(path, settings, self.options.image_size)
        return named_preprocessing(self.options.normalization, self.options.image_size)

    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the image encoder (of a CLIP model the image tower alone) with a head of one output per class.

        A head of another size that comes with the model is left behind for a fresh one.
        """
        names = {index: str(name) for index, name in enumerate(self.names)}
        model = AutoModelForImageClassification.from_pretrained(
            path,
            id2label=names,
            label2id={name: i for i, name in names.items()},
            ignore_mismatched_sizes=True,
            **settings,
        )
        if not any(isinstance(getattr(model, name, None), nn.Module) for name in SEQ_CLS_HEAD_NAMES):
            raise UserError(
                f"model.name={path}: the head of {type(model).__name__} is not named {' or '.join(SEQ_CLS_HEAD_NAMES)}; "
                "use a model such as CLIP, ViT or DINOv2"
            )
        return model

    def prepare(self, rows: Dataset, processor: Preprocessing, split: str) -> ImageRows:  # type: ignore[override]
        """Return rows that decode when asked for: training rows with random crops, others with the centre crop."""
        require_columns(rows, [self.options.image], "task.image")
        scale = self.options.crop_scale if split == "train" else None
        return ImageRows(rows, self._class_ids(rows, split), processor, self.options.image, split, scale)

    def trainer(  # type: ignore[override]
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: ImageRows,
        validation: ImageRows | None,
        processor: Preprocessing,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build transformers' Trainer over decoding workers."""
        train.seed = arguments["seed"]
        fixed = {
            "dataloader_num_workers": self._workers(),
            "label_names": ["labels"],
            "remove_unused_columns": False,  # the columns are ours, whatever the wrapped model's signature says
            "train_sampling_strategy": "random",  # images have no lengths to group by
        }
        return ImageTrainer(
            model=model,
            args=on_one_device(TrainingArguments(**arguments | fixed)),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=default_collate,
            compute_metrics=_trainer_metrics,
            callbacks=[*callbacks, _Epochs(train)],
            preprocessing=processor,
        )

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, rows: Dataset, processor: Preprocessing, scoring: Scoring) -> Scores:
        """Score the rows that are not kept yet; each prediction has its probability as `confidence`."""
        images = self.prepare(rows, processor, "evaluation")
        todo = processes.share(scoring.kept.missing(len(images)))
        loader = DataLoader(
            Subset(images, todo),
            batch_size=scoring.batch_size,
            num_workers=self._workers(),
            pin_memory=torch.accelerator.is_available(),
        )
        done, names = 0, self.names
        for batch in loader:
            logits = model(**model_inputs(model, {"pixel_values": batch["pixel_values"]}, processor)).logits
            confidence, guess = (values.tolist() for values in logits.float().softmax(-1).max(-1))
            scoring.kept.add(
                [
                    {"index": i, "label": names[t], "prediction": names[g], "confidence": c, "correct": t == g}
                    for i, t, g, c in zip(
                        todo[done : done + len(guess)], batch["labels"].tolist(), guess, confidence, strict=True
                    )
                ]
            )
            done += len(guess)
            scoring.progress(done, len(todo))
        predictions = scoring.kept.rows()
        ids = {name: i for i, name in enumerate(names)}
        truth, guesses = (np.array([ids[row[key]] for row in predictions]) for key in ("label", "prediction"))
        return Scores(metrics(truth, guesses), predictions)

    def _training_rows(self, splits: Splits, field: str) -> Dataset:
        """The training rows, or where the task has none, those that it has."""
        if splits.train is None and self.options.data.train is not None:
            try:
                splits = super().load("train", field)
            except UserError as error:
                raise UserError(f"{error}; the classes are read from there unless task.labels gives them") from error
        return next(rows for rows in (splits.train, splits.test, splits.validation) if rows is not None)

    def _class_names(self, rows: Dataset) -> list[str | int]:
        """Names of the classes as the label column declares them."""
        label, expected = self.options.label, self.options.num_classes
        require_columns(rows, [label], "task.label")
        feature = rows.features[label]
        if not isinstance(feature, ClassLabel):
            if expected is not None and _holds_ids(feature):
                return list(range(expected))
            found = sorted(set(rows[label]), key=str)
            raise UserError(
                f"task.label={label}: the column does not name its classes; set task.labels to them in the order of their "
                f"ids, or task.num_classes for ids from 0 (it holds {_few(found)})"
            )
        if expected not in (None, len(feature.names)):
            raise UserError(
                f"task.num_classes={expected}: the column {label} has {len(feature.names)} classes; check that this is "
                "the data set you mean"
            )
        return feature.names

    def _class_ids(self, rows: Dataset, split: str) -> list[int]:
        """Class id of each row; names decide, so that another file may number the same classes otherwise."""
        label = self.options.label
        require_columns(rows, [label], "task.label")
        feature, values = rows.features[label], list(rows[label])
        ids: dict[Any, int] = {name: i for i, name in enumerate(self.names)}
        named = any(isinstance(name, str) for name in ids)
        if isinstance(feature, ClassLabel) and named:
            known = dict(enumerate(feature.names))
            values = [known.get(value, value) for value in values]
        elif named and _holds_ids(feature):
            ids = {i: i for i in range(len(ids))}
        for index, value in enumerate(values):
            if value not in ids:
                raise UserError(
                    f"task.label={label}: row {index} of {split} has {value!r}, which is none of the {len(ids)} classes "
                    f"({_few(list(ids))}); mend task.labels, or filter with keep"
                )
        return [ids[value] for value in values]

    def _workers(self) -> int:
        if self.options.workers is not None:
            return self.options.workers
        if not torch.accelerator.is_available():
            return 0  # the cores compute
        return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // processes.count()))


class ImageTrainer(ClassificationTrainer):
    """Trainer whose batches hold bytes until they are on the device."""

    def __init__(self, *args: Any, preprocessing: Preprocessing, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.preprocessing = preprocessing

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss on normalised pixels; training and evaluation both come through here."""
        return super().compute_loss(model, model_inputs(model, inputs, self.preprocessing), *args, **kwargs)


class _Epochs(TrainerCallback):
    """Tells the training rows which epoch it is, before their workers start."""

    def __init__(self, rows: ImageRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Hand the epoch over; a resumed one begins with a fraction."""
        self.rows.epoch = int((state.epoch or 0) + 1e-6)


def _holds_ids(feature: Any) -> bool:
    return "int" in getattr(feature, "dtype", "")


def _few(values: list[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def model_inputs(model: nn.Module, batch: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """Put a batch on the model's device, pixels normalised.

    Where the model's position embeddings were made for another size, it is asked to interpolate them.
    """
    weight = next(model.parameters())
    placed = {key: value.to(weight.device, non_blocking=True) for key, value in batch.items()}
    placed["pixel_values"] = preprocessing.normalize(placed["pixel_values"], weight.dtype)
    if _asks_to_interpolate(model, preprocessing.size):
        placed["interpolate_pos_encoding"] = True
    return placed


def _asks_to_interpolate(model: nn.Module, size: int) -> bool:
    """Whether an embedding layer was made for another size and interpolates only when told to; others do as they must."""
    for module in model.modules():
        made_for = getattr(module, "image_size", None)
        if made_for is not None and "interpolate_pos_encoding" in inspect.signature(module.forward).parameters:
            return made_for not in (size, (size, size), [size, size])
    return False


def metrics(truth: np.ndarray, guesses: np.ndarray) -> dict[str, float]:
    """Accuracy over images, and its mean over the classes that occur."""
    classes = np.unique(truth)
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "macro_accuracy": float(recall_score(truth, guesses, labels=classes, average="macro", zero_division=0.0)),
    }


def _trainer_metrics(outcome: EvalPrediction) -> dict[str, float]:
    logits = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
    return metrics(np.asarray(outcome.label_ids), logits.argmax(-1))


register(
    Family(
        name="image_classification",
        description="one label per image; accuracy over images and over classes",
        options=ImageClassificationOptions,
        task=ImageClassification,
    )
)
