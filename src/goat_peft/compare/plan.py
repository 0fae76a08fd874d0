"""The typed plan of a comparison, and the recipes that it asks for."""

from __future__ import annotations

import json
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ..errors import UserError, closest, first_line
from ..recipes import Recipe, apply_override, check, messages, read
from ..recipes.schema import METHODS, Strict

# What a comparison sets in every recipe, and what to give instead.
_SET = {
    "training.learning_rate": "give a method's learning_rates, or a task's rate_factor",
    "training.seed": "give seeds, or tuning_seeds",
    "evaluation.split": "give seeds=[] for the validation split alone",
    "output_dir": "give --output",
}
# What it sets to the same in every recipe: saying so too is no mistake.
_ALWAYS = {"evaluation.untrained": False, "evaluation.every_steps": 0}


def _each_once(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError("holds a value twice; give each once")
    return values


def _value(override: str) -> Any:
    """What `block.key=value` gives its key; raises `UserError` where the value is no YAML."""
    data: dict[str, Any] = {}
    apply_override(data, override)
    return next(iter(next(iter(data.values())).values()))


Seeds = Annotated[list[NonNegativeInt], AfterValidator(_each_once)]


class MethodPlan(Strict):
    """One line of the comparison."""

    name: str = Field(description="registered method")
    label: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="what tables call it; the method's name when not given",
    )
    options: dict[str, Any] = Field({}, description="method options, over those of `common`")
    overrides: list[str] = Field(
        [], description="key=value for this method's runs, after those of the plan and the task"
    )
    learning_rates: list[PositiveFloat] = Field(
        [], description="tried on validation; the method's own grid when not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _fill(self) -> MethodPlan:
        if self.name not in METHODS:
            raise ValueError(f"name={self.name}: no such method; {closest(self.name, METHODS.names())}")
        self.label = self.label or self.name
        self.learning_rates = self.learning_rates or list(METHODS[self.name].learning_rates)
        if len(set(self.learning_rates)) != len(self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates}: holds a rate twice; give each once")
        return self


class TaskPlan(Strict):
    """One task of the comparison: a recipe, what changes in it, and which figures count."""

    recipe: str = Field(description="shipped name or file")
    label: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="names its folder and its line in tables; the recipe's file name when not given",
    )
    overrides: list[str] = Field([], description="key=value for this recipe, after those of the plan")
    metric: str = Field("", description="ranks on the test split; the plan's when not given")
    tuning_metric: str = Field("", description="chooses the learning rate on validation; `metric` when not given")
    methods: list[str] = Field([], description="labels of the methods that run on this task; all when not given")
    seeds: Seeds | None = Field(None, description="of the final runs; the plan's when not given")
    tuning_seeds: Seeds | None = Field(
        None, min_length=1, description="of the runs that choose a learning rate; the plan's when not given"
    )
    rate_factor: PositiveFloat = Field(1.0, description="multiplies every method's learning rates on this task")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"recipe": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _fill(self) -> TaskPlan:
        self.label = self.label or Path(self.recipe).stem
        return self


class Plan(Strict):
    """Which methods are compared, on what, how often, against whom."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder of the comparison")
    description: str = ""
    recipes: list[TaskPlan] = Field(min_length=1, description="the tasks: shipped names, files, or blocks of a task")
    overrides: list[str] = Field([], description="key=value for every recipe, as on the command line")
    common: dict[str, Any] = Field({}, description="method options given to every method that has them, such as r")
    methods: list[MethodPlan] = Field(min_length=1)
    seeds: Seeds = Field(
        [0, 1, 2], description="of the final runs, which the test split scores; none leaves the test split alone"
    )
    tuning_seeds: Seeds = Field(
        [], description="of the runs that choose a learning rate; the first seed when not given"
    )
    metric: str = Field(
        "accuracy", description="chooses the learning rate and ranks, where a task names no other; larger is better"
    )
    baseline: str = Field(description="label of the method that the others are compared with")
    candidates: list[str] = Field(
        [],
        description="labels whose best average tables from files set against the best of the others, and against `full`",
    )
    parallel: PositiveInt = Field(1, description="runs at a time, as processes of their own when above 1")

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        labels = [method.label for method in self.methods]
        if len(set(labels)) != len(labels):
            raise ValueError(f"methods: labels {', '.join(labels)} are not all different; give `label`")
        if self.baseline not in labels:
            raise ValueError(f"baseline={self.baseline}: is not among the methods; {closest(self.baseline, labels)}")
        given = [self.overrides, *(task.overrides for task in self.recipes), *(own.overrides for own in self.methods)]
        for override in chain.from_iterable(given):
            key = override.partition("=")[0]
            if key in _ALWAYS and _value(override) != _ALWAYS[key]:
                set_to = json.dumps(_ALWAYS[key])
                raise ValueError(f"overrides={override}: a comparison sets {key}={set_to} itself; leave it out")
            if key in ("training", "evaluation"):
                raise ValueError(
                    f"overrides={override}: replaces what a comparison sets; give its keys one by one, such as {key}.KEY=VALUE"
                )
            if key in _SET or key.partition(".")[0] == "method":
                raise ValueError(
                    f"overrides={override}: a comparison sets {key} itself; {_SET.get(key, 'give methods, their options, or common')}"
                )
        stray = [label for label in self.candidates if label not in labels]
        if stray:
            raise ValueError(f"candidates={stray[0]}: is not among the methods; {closest(stray[0], labels)}")
        options = {key for method in self.methods for key in METHODS[method.name].options.model_fields} - {"name"}
        unknown = [key for key in self.common if key not in options]
        if unknown:
            raise ValueError(
                f"common.{unknown[0]}: no method of the plan has this option; {closest(unknown[0], options)}"
            )
        names = [task.label for task in self.recipes]
        if len(set(names)) != len(names):
            raise ValueError(
                f"recipes: {', '.join(task.recipe for task in self.recipes)} share a name, which names their folders; give `label`"
            )
        self.tuning_seeds = self.tuning_seeds or self.seeds[:1]
        if not self.tuning_seeds:
            raise ValueError("seeds, tuning_seeds: are both empty, so nothing would run; give one of them")
        for task in self.recipes:
            unknown = [label for label in task.methods if label not in labels]
            if unknown:
                raise ValueError(f"recipes.{task.label}.methods={unknown[0]}: {closest(unknown[0], labels)}")
            if task.methods and self.baseline not in task.methods:
                raise ValueError(f"recipes.{task.label}.methods: leaves out the baseline {self.baseline}; add it")
            task.metric = task.metric or self.metric
            task.tuning_metric = task.tuning_metric or task.metric
            task.seeds = self.seeds if task.seeds is None else task.seeds
            task.tuning_seeds = task.tuning_seeds or self.tuning_seeds
        trials = {method.label: len(method.learning_rates) for method in self.methods}
        if len(set(trials.values())) > 1:
            raise ValueError(
                f"methods: the numbers of learning rates differ ({trials}); a fair comparison gives every method as many trials"
            )
        return self

    def methods_of(self, task: TaskPlan) -> list[MethodPlan]:
        """The methods that run on a task, in the plan's order."""
        return [method for method in self.methods if not task.methods or method.label in task.methods]

    def rates(self, task: TaskPlan, method: MethodPlan) -> list[float]:
        """The learning rates that a method tries on a task."""
        return [float(f"{rate * task.rate_factor:.6g}") for rate in method.learning_rates]

    def recipe(self, task: TaskPlan, method: MethodPlan, rate: float, seed: int, split: str, folder: Path) -> Recipe:
        """The checked recipe of one run, scored on `split` ('validation' or 'test')."""
        data = read(task.recipe)
        for override in [*self.overrides, *task.overrides, *method.overrides]:
            apply_override(data, override)
        known = METHODS[method.name].options.model_fields
        common = {key: value for key, value in self.common.items() if key in known}
        data["method"] = {"name": method.name, **common, **method.options}
        data["training"] = {**(data.get("training") or {}), "learning_rate": rate, "seed": seed}
        always = {key.partition(".")[2]: value for key, value in _ALWAYS.items()}
        data["evaluation"] = {**(data.get("evaluation") or {}), "split": split, **always}
        data["output_dir"] = str(folder)
        recipe = check(data)
        splits = getattr(recipe.task, "data", None)
        cut = getattr(splits, "cut", None)
        tunes = len(method.learning_rates) > 1 or split == "validation"
        if tunes and splits is not None and splits.validation is None and (cut is None or cut.validation is None):
            raise UserError(
                f"recipes={task.recipe}: has no validation split to choose learning rates on; give the override task.data.cut.validation=N"
            )
        return recipe


def shipped_plans() -> list[str]:
    """Names of the plans that come with the package, sorted."""
    folder = resources.files(__package__) / "plans"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_plan(source: str, overrides: list[str] | tuple[str, ...] = ()) -> Plan:
    """Read a plan's file or a shipped plan, with `key=value` overrides; raise `UserError` with one line per mistake."""
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif source in shipped_plans():
        text = (resources.files(__package__) / "plans" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"plan={source}: no such file and no shipped plan; {closest(source, shipped_plans())}")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"plan={source}: is not YAML ({first_line(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"plan={source}: holds no keys; it needs name, recipes, methods and baseline")
    for override in overrides:
        apply_override(data, override)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise UserError(
            "\n".join(f"plan.{line.removeprefix('plan: ')}" for line in messages.lines(error, data, root=Plan))
        ) from None
