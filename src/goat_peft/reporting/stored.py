"""What tables read of `comparison.json`, typed: a damaged file is one line that names the field, never a traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Label = Annotated[str, Field(pattern=r"^[^|\r\n]+$")]  # stands in a cell of a table


class _Stored(BaseModel):
    """No text passes for a number, nor nan for a figure; keys that no table reads may be there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Gap(_Stored):
    difference: float | None
    low: float | None
    high: float | None


class Answers(_Stored):
    rows: str
    count: int = Field(ge=0)
    right: str


class Info(_Stored):
    num_trainable_params: int
    num_total_params: int
    train_time: float
    accelerator_memory_max: float


class Tried(_Stored):
    value: float | None
    error: str | None
    # Absent from files of before, and of runs that failed:
    file: str | None = None
    settings: str | None = None
    info: Info | None = None
    answers: list[Answers] | None = None


class Swept(Tried):
    learning_rate: float
    seed: int | None = None  # likewise


class Run(Tried):
    seed: int


class Row(Gap):
    label: Label
    method: str
    learning_rate: float | None
    sweep: list[Swept]
    test: list[Run]
    mean: float | None
    sd: float | None
    parameters: int | None
    train_time: float | None
    paired_over: Literal["seeds", "examples", "seeds and examples"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Row:
        absent = [name for name in ("learning_rate", "train_time") if getattr(self, name) is None]
        if self.mean is not None and absent:
            raise ValueError(f"has a mean, and no {absent[0]}")
        return self


class Task(_Stored):
    name: Label
    metric: str
    split: Literal["test", "validation"]
    freedom: int | None = None  # absent from files whose intervals were not yet widened for few seeds
    rows: list[Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> Task:
        _each_once("rows", (row.label for row in self.rows))
        return self


class Average(Gap):
    label: Label
    mean: float | None
    against: dict[str, Gap] = {}  # absent from the files of before


class Method(_Stored):
    label: Label
    learning_rates: list[float] = Field(min_length=1)
    options: dict[str, Any] = {}
    overrides: list[str] = []


class Recipe(_Stored):
    label: Label
    overrides: list[str] = []
    rate_factor: float = Field(1.0, gt=0)


class Plan(_Stored):
    common: dict[str, Any]
    overrides: list[str] = []
    recipes: list[Recipe | str] = []  # names alone in the files of before
    methods: list[Method] = Field(min_length=1)
    baseline: str
    candidates: list[str] = []
    parallel: int = Field(1, gt=0)


class Place(_Stored):
    accelerator: str
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]  # versions


class Part(_Stored):
    file: Label


class RunInfo(_Stored):
    created_at: str
    command: str
    plan: Plan
    ran_on: list[Place] = []
    combined: list[Part] = []  # the files that results/combine.py put together


class System(_Stored):
    accelerator: str
    processor: str


class Meta(_Stored):
    system_info: System
    package_info: dict[str, str | None]


class Comparison(_Stored):
    """The whole file."""

    run_info: RunInfo
    tasks: list[Task] = Field(min_length=1)
    overall: list[Average]
    meta_info: Meta

    @model_validator(mode="after")
    def _agrees(self) -> Comparison:
        labels = [row.label for row in self.overall]
        _each_once("overall", labels)
        _each_once("tasks", (task.name for task in self.tasks))
        if self.run_info.plan.baseline not in labels:
            raise ValueError(f"overall: lacks the baseline {self.run_info.plan.baseline}")
        stray = [row.label for task in self.tasks for row in task.rows if row.label not in labels]
        if stray:
            raise ValueError(f"overall: lacks {stray[0]}, which has a row in a task")
        return self


def fault(data: dict[str, Any]) -> str | None:
    """The first field that is not as `goat compare` writes it, and what is wrong with it; None for a sound file."""
    try:
        Comparison.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        said = " ".join(first["msg"].removeprefix("Value error, ").split())
        return f"{field}: {said}" if field else said
    return None


def _each_once(field: str, names: Iterable[str]) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{field}: has {twice} twice")
