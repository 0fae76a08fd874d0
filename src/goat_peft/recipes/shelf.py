"""The YAML that ships with the package: recipes by family, the defaults they extend, and task files."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, closest, first_line

DEFAULTS, TASK_FILES = "defaults", "tasks"


def families() -> dict[str, list[str]]:
    """Recipes by family: the names of the shipped folders, each with its recipes, both sorted."""
    folders = (entry for entry in _root().iterdir() if entry.is_dir())
    return {
        folder.name: _names(folder)
        for folder in sorted(folders, key=lambda folder: folder.name)
        if folder.name not in {DEFAULTS, TASK_FILES} and _names(folder)
    }


def shipped() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(name for names in families().values() for name in names)


def task_files() -> list[str]:
    """Names of the task files that come with the package, sorted."""
    return _names(_root() / TASK_FILES)


def read_text(source: str) -> str:
    """Return the YAML text of a recipe file or of a shipped recipe's name."""
    if is_file(source):
        return _read_file(source, "recipe", shipped())
    return _shipped_text(source)


def read_task_text(source: str) -> str:
    """Return the YAML text of a task file, by shipped name or path."""
    if is_file(source):
        return _read_file(source, "task", task_files())
    if source not in task_files():
        raise UserError(f"task={source}: no such file and no shipped task; {closest(source, task_files())}")
    return (_root() / TASK_FILES / f"{source}.yaml").read_text(encoding="utf-8")


def read_block(source: str, field: str) -> dict[str, Any]:
    """Read the keys of a recipe, a file of defaults or a task file, as they stand; `field` names it in errors.

    Args:
        source: a YAML file, or a shipped name: of a task file where `field` ends in `use`, else of defaults or a recipe.
    """
    if is_file(source):
        return parse(_read_file(source, field, _known(field)), f"{field}={source}")
    folder = _root() / (TASK_FILES if field.endswith("use") else DEFAULTS)
    if source in _names(folder):
        return parse((folder / f"{source}.yaml").read_text(encoding="utf-8"), f"{field}={source}")
    if folder.name == DEFAULTS and source in shipped():
        return parse(_shipped_text(source), f"{field}={source}")
    kind = "task" if folder.name == TASK_FILES else "defaults or recipe"
    raise UserError(f"{field}={source}: no such file and no shipped {kind}; {closest(source, _known(field))}")


def parse(text: str, where: str) -> dict[str, Any]:
    """Turn YAML into keys; raise `UserError` when it holds none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}:{place} is not YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: holds no keys; see `goat recipes show demo-reviews` for the form")
    return data


def is_file(source: str) -> bool:
    """Tell a path from a shipped name."""
    path = Path(source)
    return path.suffix in {".yaml", ".yml"} or path.is_file()


def _shipped_text(name: str) -> str:
    for family, names in families().items():
        if name in names:
            return (_root() / family / f"{name}.yaml").read_text(encoding="utf-8")
    raise UserError(f"recipe={name}: no such file and no shipped recipe; {closest(name, shipped())}")


def _read_file(source: str, field: str, known: list[str]) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except OSError as error:
        hint = closest(Path(source).stem, known)
        raise UserError(f"{field}={source}: {error.strerror}; give a YAML file or a shipped name, {hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{field}={source}: not a text file; give a YAML file in UTF-8") from None


def _known(field: str) -> list[str]:
    return task_files() if field.endswith("use") else [*_names(_root() / DEFAULTS), *shipped()]


def _root() -> Traversable:
    return resources.files(__package__) / "shipped"


def _names(folder: Traversable) -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
