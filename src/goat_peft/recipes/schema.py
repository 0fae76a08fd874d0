"""The typed recipe: what a run trains, on what, how, and what it measures.

Every block forbids unknown keys. `method` and `task` are open families: their options are the pydantic model that the
named method or task registered (`goat_peft.methods`, `goat_peft.tasks`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..errors import closest
from .registry import Registry

METHODS: Registry[Any] = Registry("method", "goat_peft.methods")
TASKS: Registry[Any] = Registry("task", "goat_peft.tasks")


class Strict(BaseModel):
    """A block of a recipe: unknown keys are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True)


class MethodOptions(Strict):
    """Base of every method's options; `name` picks the method."""

    name: str


class TaskOptions(Strict):
    """Base of every task family's options; `type` picks the family."""

    type: str


class ModelSettings(Strict):
    """Which pretrained model."""

    name: str = Field(description="hub name, local folder, or package:NAME/folder inside an installed distribution")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="dtype the weights load in")
    trust_remote_code: bool = Field(False, description="run code that comes with the model; off unless you say so")


class Source(Strict):
    """Rows of one split: a hub data set, or a local file."""

    path: str | None = Field(
        None, description="local .jsonl, .json, .csv or .parquet file (.gz, .bz2, .xz too), or package:NAME/file"
    )
    dataset: str | None = Field(None, description="hub data set")
    config: str | None = Field(None, description="hub configuration, such as sst2 of glue")
    split: str = Field("train", description="hub split")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    keep: dict[str, list[Any]] = Field({}, description="column -> values; rows with other values are left out")
    limit: PositiveInt | None = Field(None, description="first rows only")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path (a local file) or dataset (a hub name), not both and not neither")
        return self


class Cut(Strict):
    """How many rows are cut from the training rows for splits that have no source of their own, and how."""

    validation: PositiveInt | None = Field(None, description="rows cut for choosing settings")
    test: PositiveInt | None = Field(None, description="rows cut for the final figure")
    train: PositiveInt | None = Field(None, description="rows kept for training; all that are left when not given")
    group_by: str | None = Field(None, description="column; rows that share its value end in the same split")
    seed: NonNegativeInt = Field(0, description="seed of the cut, apart from the training seed")


class Data(Strict):
    """Where the three splits come from."""

    train: Source
    validation: Source | None = None
    test: Source | None = None
    cut: Cut | None = None

    @model_validator(mode="after")
    def _no_split_twice(self) -> Data:
        for split in ("validation", "test"):
            if self.cut is not None and getattr(self.cut, split) and getattr(self, split):
                raise ValueError(f"{split} has a source and a cut; remove one of {split} and cut.{split}")
        return self


class Training(Strict):
    """How long, how fast, in which batches."""

    learning_rate: PositiveFloat | dict[str, PositiveFloat] | None = Field(
        None, description="a number, or one per method name; the method's default when not given"
    )
    epochs: PositiveFloat | None = Field(None, description="passes over the training rows; 3 when max_steps is absent")
    max_steps: PositiveInt | None = Field(None, description="optimiser steps, in place of epochs")
    batch_size: PositiveInt = Field(16, description="examples per device and micro-batch")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimiser step")
    warmup: NonNegativeFloat = Field(0.0, description="steps, or a share of all steps when below 1")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field("cosine")
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = Field(1.0, description="0 turns clipping off")
    bf16: bool = Field(False, description="bfloat16 autocast")
    gradient_checkpointing: bool = False
    group_by_length: bool = Field(True, description="batches of like lengths, so that little is padded")
    seed: NonNegativeInt = 0
    logging_steps: PositiveInt = 10
    save_steps: NonNegativeInt | None = Field(None, description="0 never saves; absent saves after each epoch")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps are both given; set one of them to null")
        return self


class Evaluation(Strict):
    """What is measured, and when."""

    split: Literal["test", "validation"] = Field("test", description="split of the final figure")
    batch_size: PositiveInt = 32
    every_steps: NonNegativeInt | None = Field(
        None, description="score the validation split this often while training; 0 never, absent after each epoch"
    )
    untrained: bool = Field(False, description="also score the model before training")


def _options(registry: Registry[Any], key: str) -> BeforeValidator:
    """Build the validator that turns a dict into the options model registered under `dict[key]`."""

    def validate(value: Any) -> Any:
        if isinstance(value, str):
            value = {key: value}
        if not isinstance(value, dict):
            return value
        name = value.get(key)
        if name not in registry:
            known = ", ".join(registry.names())
            hint = closest(str(name), registry.names()) if name is not None else f"choose from {known}"
            raise PydanticCustomError(
                "unknown_family", "no such {kind}; {hint}", {"kind": registry.kind, "hint": hint, "key": key}
            )
        try:
            return registry[name].options.model_validate(value)
        except ValidationError as error:
            # Pydantic would flatten the inner error to text; carried whole, the formatter can still name the field.
            raise PydanticCustomError("nested", "invalid {kind}", {"kind": registry.kind, "error": error}) from None

    return BeforeValidator(validate)


class Recipe(Strict):
    """One run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    description: str = ""
    model: Annotated[ModelSettings, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
    task: Annotated[SerializeAsAny[TaskOptions], _options(TASKS, "type")]
    method: Annotated[SerializeAsAny[MethodOptions], _options(METHODS, "name")]
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    output_dir: str | None = Field(None, description="run folder; runs/<name> when not given")
