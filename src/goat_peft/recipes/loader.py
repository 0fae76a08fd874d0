"""From a YAML file or a shipped recipe's name, plus `key=value` overrides, to a checked `Recipe`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import UserError, closest, first_line
from .messages import lines
from .schema import METHODS, Recipe

# A block that may be written as a bare name: `method: goat` is `method: {name: goat}`.
BARE_NAMES = {"method": "name", "model": "name", "task": "type"}


def shipped() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files(__package__) / "shipped"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_text(source: str) -> str:
    """Return the YAML text of a recipe file or of a shipped recipe's name."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"recipe={source}: {error.strerror}; give a YAML file or one of {', '.join(shipped())}")
        except UnicodeDecodeError:
            raise UserError(f"recipe={source}: not a text file; give a YAML file in UTF-8") from None
    if source not in shipped():
        raise UserError(f"recipe={source}: no such file and no shipped recipe; {closest(source, shipped())}")
    return (resources.files(__package__) / "shipped" / f"{source}.yaml").read_text(encoding="utf-8")


def load(source: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load, override and check a recipe; raise `UserError` with one line per mistake."""
    try:
        data = yaml.safe_load(read_text(source))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe={source}:{place} is not YAML: {getattr(error, 'problem', None) or first_line(error)}")
    if not isinstance(data, dict):
        raise UserError(f"recipe={source}: holds no keys; see `goat recipes show {shipped()[0]}` for the form")
    for override in overrides:
        apply_override(data, override)
    return check(data)


def check(data: dict[str, Any]) -> Recipe:
    """Turn plain data into a `Recipe` whose learning rate is settled."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(lines(error, data))) from None
    return _settle_learning_rate(recipe)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML (`method.r=16`, `training.epochs=null`)."""
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
    block[last] = value


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe out in full, as `recipe.yaml` of a run holds it."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _settle_learning_rate(recipe: Recipe) -> Recipe:
    """Replace a table of learning rates, or none, by the one number that the recipe's method trains with."""
    given, method = recipe.training.learning_rate, recipe.method.name
    if isinstance(given, dict):
        for name in given:
            if name not in METHODS:
                raise UserError(f"training.learning_rate.{name}: no such method; {closest(name, METHODS.names())}")
        given = given.get(method)
    rate = METHODS[method].learning_rate if given is None else given
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
