"""The typed recipe: what a run trains, on what, how, and what it measures.

Every block forbids unknown keys. `method` and `task` are open families: their options are the pydantic model that the
named method or task registered (`goat_peft.methods`, `goat_peft.tasks`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AllowInfNan,
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
    field_validator,
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
    """Base of every method's options; `name` picks the method.

    `own` holds the keys that make a method what it is: the override `method=NAME` never carries them to another one.
    """

    own: ClassVar[frozenset[str]] = frozenset({"name"})

    name: str


class About(Strict):
    """Where a task's data comes from, for a reader who decides whether to use it."""

    source: str = Field(description="who made the data, and where it is described")
    licence: str = Field(description="terms of the data, or that none are stated")
    size: str = Field(description="rows and download, in words")


class TaskOptions(Strict):
    """Base of every task family's options; `type` picks the family."""

    type: str
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="names its figures; the task file's name when it comes from one",
    )
    version: PositiveInt = Field(1, description="raised when a change of the task changes its figures")
    about: About | None = None


class ModelSettings(Strict):
    """Which pretrained model."""

    name: str = Field(description="hub name, local folder, or package:NAME/folder inside an installed distribution")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="dtype the weights load in")
    quantize: Literal["nf4", "int8", "torchao-int8"] | None = Field(
        None,
        description="load the frozen linears in 4 bits (nf4) or 8, through bitsandbytes or torchao; for methods that "
        "leave the base's weights as they are",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model; off unless you say so")


class Source(Strict):
    """Rows of one split: a hub data set, a file on the web, or local files. What follows `rows` applies in this order."""

    path: str | list[str] | None = Field(
        None,
        description=".jsonl, .json, .csv or .parquet file (.gz, .bz2, .xz too), https:// address of one, folder of images "
        "by class, package:NAME/file, or a list of them",
    )
    dataset: str | None = Field(None, description="hub data set")
    config: str | None = Field(None, description="hub configuration, such as sst2 of glue")
    split: str = Field("train", description="hub split")
    file: str | None = Field(
        None, description="name in `data.folder`, without the ending; the split's name when not given"
    )
    revision: str | None = Field(None, description="hub branch, tag or commit")
    rows: PositiveInt | None = Field(
        None, description="rows that the protocol expects before any filter; another number is an error"
    )
    columns: dict[str, str] = Field(
        {}, description="column -> name that it gets; data that has the name already stays as it is"
    )
    keep: dict[str, list[Any]] = Field({}, description="column -> values; rows with other values are left out")
    containing: dict[str, list[str]] = Field({}, description="column -> texts; rows that hold none are left out")
    not_containing: dict[str, list[str]] = Field(
        {}, description="column -> texts; rows that hold one, in capitals or not, are left out"
    )
    cut_after: dict[str, str] = Field(
        {}, description="column -> regular expression (. matches newlines); the text ends with its first match"
    )
    max_tokens: PositiveInt | None = Field(
        None, description="rows whose example reaches this many tokens are left out of training"
    )
    limit: PositiveInt | None = Field(None, description="first rows only, of those that the filters leave")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path (a local file) or dataset (a hub name), not both and not neither")
        if isinstance(self.path, str) and self.path.startswith("http://"):
            raise ValueError(f"path={self.path} is not read over plain http; give its https:// address")
        return self

    @field_validator("cut_after")
    @classmethod
    def _compiles(cls, patterns: dict[str, str]) -> dict[str, str]:
        for column, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the pattern of {column} is not a regular expression ({error})") from None
        return patterns


Share = Annotated[float, Field(gt=0, lt=1)]


class Cut(Strict):
    """How many rows are cut from the training rows for splits that have no source of their own, and how."""

    validation: PositiveInt | Share | None = Field(
        None, description="rows, or a share of them, cut for choosing settings"
    )
    test: PositiveInt | Share | None = Field(None, description="rows, or a share of them, cut for the final figure")
    at_most: PositiveInt | None = Field(None, description="most rows that a share takes")
    train: PositiveInt | None = Field(None, description="rows kept for training; all that are left when not given")
    group_by: str | None = Field(None, description="column; rows that share its value end in the same split")
    seed: NonNegativeInt = Field(0, description="seed of the cut, apart from the training seed")


class Data(Strict):
    """Where the three splits come from. A task that only tests has no training rows."""

    train: Source | None = None
    validation: Source | None = None
    test: Source | None = None
    cut: Cut | None = None
    folder: str | None = Field(
        None,
        description="local folder read in place of the hub: files named after each source's split (train.jsonl.gz, "
        "test.parquet), or images in train/CLASS/",
    )

    @model_validator(mode="after")
    def _no_split_twice(self) -> Data:
        if self.train is None and self.test is None:
            raise ValueError("gives no rows; give train, test or both")
        for split in ("validation", "test"):
            if self.cut is not None and getattr(self.cut, split) and getattr(self, split):
                raise ValueError(f"{split} has a source and a cut; remove one of {split} and cut.{split}")
        if self.cut is not None and self.train is None:
            raise ValueError("cut has no training rows to cut from; give train")
        return self


Rate = Annotated[PositiveFloat, AllowInfNan(False)]


class Training(Strict):
    """How long, how fast, in which batches."""

    learning_rate: Rate | dict[str, Rate] | None = Field(
        None, description="a number, or one per method name (and `other`); the method's default when not given"
    )
    rates: dict[str, Rate] = Field(
        {},
        description="regular expression of parameter names -> a learning rate of its own, whatever `learning_rate` is; the first that is "
        "found in a name counts, and comes before `rate_factors`; {classifier: 1e-3} gives a fresh head the same rate under every method",
    )
    rate_factors: dict[str, Rate] = Field(
        {},
        description="regular expression of parameter names -> factor of the learning rate, the first that is found in a name "
        "counts; {classifier: 10} trains a fresh head faster",
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
    fp16: bool = Field(False, description="float16 autocast with a loss scale, for GPUs that lack bfloat16")
    gradient_checkpointing: bool = False
    cuda_graphs: bool = Field(
        False,
        description="forward and backward captured once for each shape of batch and replayed, for small models that wait for the "
        "host; on one CUDA device, elsewhere it changes nothing",
    )
    group_by_length: bool = Field(True, description="batches of like lengths, so that little is padded")
    seed: NonNegativeInt = 0
    logging_steps: PositiveInt = 10
    save_steps: NonNegativeInt | None = Field(None, description="0 never saves; absent saves after each epoch")
    report_to: list[Literal["wandb", "trackio", "tensorboard"]] = Field(
        [], description="experiment trackers that get every log; each must be installed"
    )

    @field_validator("rates", "rate_factors")
    @classmethod
    def _patterns_compile(cls, factors: dict[str, float]) -> dict[str, float]:
        for pattern in factors:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern} is not a regular expression ({error})") from None
        return factors

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(
                "epochs and max_steps are both given; set one of them to null, such as training.epochs=null"
            )
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true; keep bf16 where the GPU has it")
        return self

    @model_validator(mode="after")
    def _can_be_captured(self) -> Training:
        if self.cuda_graphs and self.fp16:
            raise ValueError("cuda_graphs=True: does not go with fp16, whose loss scale changes; use bf16, or neither")
        if self.cuda_graphs and self.gradient_checkpointing:
            raise ValueError("cuda_graphs=True: does not go with gradient_checkpointing; set one of them to false")
        return self


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
            return registry[str(name)].options.model_validate(value)
        except ValidationError as error:
            # Pydantic would flatten the inner error to text; carried whole, the formatter can still name the field.
            raise PydanticCustomError("nested", "invalid {kind}", {"kind": registry.kind, "error": error}) from None

    return BeforeValidator(validate)


Task = Annotated[SerializeAsAny[TaskOptions], _options(TASKS, "type")]


class Evaluation(Strict):
    """What is measured, and when."""

    split: Literal["test", "validation"] = Field("test", description="split of the final figure")
    batch_size: PositiveInt = 32
    every_steps: NonNegativeInt | None = Field(
        None, description="score the validation split this often while training; 0 never, absent after each epoch"
    )
    untrained: bool = Field(False, description="also score the model before training")
    tests: list[Task] = Field(
        [],
        description="task files' names (or task blocks) whose test splits give the final figures; the recipe's own "
        "test split when not given",
    )
    folder: str | None = Field(
        None,
        description="local folder in place of the tests' own; it holds one per test, named as its task file (in capitals or not)",
    )

    @model_validator(mode="after")
    def _tests_agree(self) -> Evaluation:
        names = [test.name for test in self.tests]
        for index, test in enumerate(self.tests):
            if not test.name:
                raise ValueError(f"tests.{index}.name=: names its figures; give it one")
            if names.count(test.name) > 1:
                raise ValueError(f"tests.{index}.name={test.name}: is another test's name too; rename one")
            data = getattr(test, "data", None)
            if isinstance(data, Data) and data.test is None:
                raise ValueError(f"tests.{index}.data.test=None: the task has no test rows; leave it out")
        return self


class Recipe(Strict):
    """One run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    description: str = ""
    model: Annotated[ModelSettings, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
    task: Task
    method: Annotated[SerializeAsAny[MethodOptions], _options(METHODS, "name")]
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    output_dir: str | None = Field(None, description="run folder; runs/<name> when not given")

    @model_validator(mode="after")
    def _has_training_rows(self) -> Recipe:
        data = getattr(self.task, "data", None)
        if isinstance(data, Data) and data.train is None:
            raise ValueError("task.data.train=None: the task only tests; give training rows, or `use` another task")
        return self

    @model_validator(mode="after")
    def _can_be_captured(self) -> Recipe:
        if self.training.cuda_graphs and not TASKS[self.task.type].task.captures_steps:
            raise ValueError(
                f"training.cuda_graphs=True: the steps of {self.task.type} cannot be captured; set it to false"
            )
        if self.training.cuda_graphs and self.model.quantize is not None:
            raise ValueError(
                f"training.cuda_graphs=True: does not go with model.quantize={self.model.quantize}; set one of them to null or false"
            )
        return self

    @model_validator(mode="after")
    def _leaves_a_quantised_base(self) -> Recipe:
        if self.model.quantize is not None and METHODS[self.method.name].writes_base:
            raise ValueError(
                f"model.quantize={self.model.quantize}: {self.method.name} changes the base's weights, which are rounded "
                "then; use an adapter such as goat or lora, or set it to null"
            )
        return self
