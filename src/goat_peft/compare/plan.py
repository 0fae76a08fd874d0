"""The typed plan of a comparison, and the recipes that it asks for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import UserError, closest, first_line
from ..recipes import Recipe, apply_override, check, read
from ..recipes.schema import METHODS, Strict


class MethodPlan(Strict):
    """One line of the comparison."""

    name: str = Field(description="registered method")
    label: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="what tables call it; the method's name when not given",
    )
    options: dict[str, Any] = Field({}, description="method options, over those of `common`")
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


class Plan(Strict):
    """Which methods are compared, on what, how often, against whom."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder of the comparison")
    description: str = ""
    recipes: list[str] = Field(min_length=1, description="shipped names or files; each is one task of the comparison")
    overrides: list[str] = Field([], description="key=value for every recipe, as on the command line")
    common: dict[str, Any] = Field({}, description="method options given to every method that has them, such as r")
    methods: list[MethodPlan] = Field(min_length=1)
    seeds: list[NonNegativeInt] = Field(
        [0, 1, 2], min_length=1, description="of the final runs, which the test split scores"
    )
    tuning_seeds: list[NonNegativeInt] = Field(
        [], description="of the runs that choose a learning rate; the first seed when not given"
    )
    metric: str = Field("accuracy", description="chooses the learning rate and ranks; larger is better")
    baseline: str = Field(description="label of the method that the others are compared with")
    parallel: PositiveInt = Field(1, description="runs at a time, as processes of their own when above 1")

    @field_validator("recipes", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError("holds a value twice; give each once")
        return values

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        labels = [method.label for method in self.methods]
        if len(set(labels)) != len(labels):
            raise ValueError(f"methods: labels {', '.join(labels)} are not all different; give `label`")
        if self.baseline not in labels:
            raise ValueError(f"baseline={self.baseline}: is not among the methods; {closest(self.baseline, labels)}")
        stems = [Path(source).stem for source in self.recipes]
        if len(set(stems)) != len(stems):
            raise ValueError(
                f"recipes: {', '.join(self.recipes)} share a file name, which names their folders; rename one"
            )
        trials = {method.label: len(method.learning_rates) for method in self.methods}
        if len(set(trials.values())) > 1:
            raise ValueError(
                f"methods: the numbers of learning rates differ ({trials}); a fair comparison gives every method as many trials"
            )
        self.tuning_seeds = self.tuning_seeds or self.seeds[:1]
        return self

    def recipe(self, source: str, method: MethodPlan, rate: float, seed: int, split: str, folder: Path) -> Recipe:
        """The checked recipe of one run, scored on `split` ('validation' or 'test')."""
        data = read(source)
        for override in self.overrides:
            apply_override(data, override)
        known = METHODS[method.name].options.model_fields
        common = {key: value for key, value in self.common.items() if key in known}
        data["method"] = {"name": method.name, **common, **method.options}
        data["training"] = {**(data.get("training") or {}), "learning_rate": rate, "seed": seed}
        data["evaluation"] = {**(data.get("evaluation") or {}), "split": split, "untrained": False, "every_steps": 0}
        data["output_dir"] = str(folder)
        recipe = check(data)
        splits = getattr(recipe.task, "data", None)
        cut = getattr(splits, "cut", None)
        if splits is not None and splits.validation is None and (cut is None or cut.validation is None):
            raise UserError(
                f"recipes={source}: has no validation split to choose learning rates on; give the override task.data.cut.validation=N"
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
        raise UserError("\n".join(_line(item) for item in error.errors(include_url=False))) from None


def _line(item: Any) -> str:
    """One pydantic error as `field: what is wrong`."""
    field = ".".join(map(str, item["loc"]))
    said = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        said = f"unknown key; {closest(str(item['loc'][-1]), [*Plan.model_fields, *MethodPlan.model_fields])}"
    return f"plan.{field}: {said}" if field else f"plan.{said}"
