"""From a YAML file or a shipped recipe's name, plus `key=value` overrides, to a checked `Recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import UserError, closest, first_line
from .messages import lines
from .resolve import BARE_NAMES, extended, used, with_tasks
from .schema import METHODS, TASKS, Recipe, TaskOptions
from .shelf import parse, read_text


def read(source: str) -> dict[str, Any]:
    """Read a recipe's keys, with those of the files it extends below them; `use` still stands."""
    return extended(parse(read_text(source), f"recipe={source}"), source)


def load(source: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load, override and check a recipe; raise `UserError` with one line per mistake."""
    data = read(source)
    for override in overrides:
        apply_override(data, override)
    return check(data)


def check(data: dict[str, Any]) -> Recipe:
    """Turn plain data into a `Recipe` that stands on its own: task files filled in, learning rate settled."""
    data = with_tasks(data)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(lines(error, data))) from None
    return _settle_learning_rate(recipe)


def load_task(source: str, overrides: list[str] | tuple[str, ...] = ()) -> TaskOptions:
    """Load a task file by shipped name or path; overrides are `key=value` of the task (`data.folder=DIR`)."""
    data: dict[str, Any] = {"task": {"use": source}}
    for override in overrides:
        apply_override(data, f"task.{override}")
    block = used(data["task"], "task")
    kind = block.get("type")
    if kind not in TASKS:
        raise UserError(f"task.type={kind}: no such task; {closest(str(kind), TASKS.names())}")
    try:
        return TASKS[kind].options.model_validate(block)
    except ValidationError as error:
        raise UserError("\n".join(lines(error, {"task": block}, ("task",)))) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML (`method.r=16`, `training.epochs=null`).

    A bare `method=NAME` keeps the recipe's settings that both methods have, such as r; `method={name: NAME}` keeps none.
    """
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"{override}: not an override; write key=value, such as training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text}: the value is not YAML ({first_line(error)}); quote it") from None
    *parents, last = key.split(".")
    block = data
    for depth, part in enumerate(parents):
        inner = block.get(part)
        if isinstance(inner, str) and depth == 0 and part in BARE_NAMES:
            inner = {BARE_NAMES[part]: inner}
        block[part] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise UserError(
                f"{key}={text}: {'.'.join(parents[: depth + 1])} is a value, not a block; set it as a whole"
            )
        block = inner
    if not parents and last == "model" and isinstance(value, str) and isinstance(data.get("model"), dict):
        # Another model of the same settings: only the name changes, and the old name's revision goes with it.
        data["model"] = {**{k: v for k, v in data["model"].items() if k != "revision"}, "name": value}
        return
    if not parents and last == "method" and isinstance(value, str) and isinstance(data.get("method"), dict):
        value = _another_method(data["method"], value)
    block[last] = value


def _another_method(below: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the block of method `name` with the settings of the block `below` that mean the same in both, such as r."""
    if below.get("name") == name:
        return below
    if name not in METHODS or below.get("name") not in METHODS:
        return {"name": name}
    old, new = METHODS[below["name"]].options, METHODS[name].options
    shared = (old.model_fields.keys() & new.model_fields.keys()) - old.own - new.own
    return {"name": name} | {key: value for key, value in below.items() if key in shared}


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe out in full, as `recipe.yaml` of a run holds it."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def is_stored(recipe: Recipe, file: Path) -> bool:
    """Whether `file` holds this recipe, as `to_yaml` wrote it: now, or before there were keys that have their default values here."""
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        return isinstance(stored, dict) and to_yaml(check(stored)) == to_yaml(recipe)
    except (OSError, ValueError, yaml.YAMLError, UserError):
        return False


def _settle_learning_rate(recipe: Recipe) -> Recipe:
    """Replace a table of learning rates, or none, by the one number that the recipe's method trains with."""
    given, method = recipe.training.learning_rate, recipe.method.name
    if isinstance(given, dict):
        for name in given:
            if name != "other" and name not in METHODS:
                known = [*METHODS.names(), "other"]
                raise UserError(f"training.learning_rate.{name}: no such method; {closest(name, known)}")
        given = given.get(method, given.get("other"))
    rate = METHODS[method].learning_rate if given is None else given
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
