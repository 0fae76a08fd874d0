"""A recipe's `extends` and `use`: other files' keys, with the recipe's own on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .shelf import read_block

# A block that may be written as a bare name: `method: goat` is `method: {name: goat}`.
BARE_NAMES = {"method": "name", "model": "name", "task": "use"}
# Keys that say what a block is: where they name something else, the block below says nothing about this one.
IDENTITY = {"method": ("name",), "train": ("path", "dataset"), "validation": ("path", "dataset")}
IDENTITY |= {"task": ("use", "type"), "test": ("path", "dataset")}


def extended(data: dict[str, Any], where: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return `data` on top of the file that its `extends` names, and of the files that that one extends.

    Raises:
        UserError: `extends` names no file, or files extend each other in a circle.
    """
    if "extends" not in data:
        return data
    own = dict(data)
    name = own.pop("extends")
    if not isinstance(name, str):
        raise UserError(f"extends={name}: not a name; give one file or shipped name")
    chain = (*chain, where)
    if name in chain:
        raise UserError(f"extends={name}: goes in a circle ({' -> '.join((*chain, name))}); remove one of them")
    return merged(extended(read_block(name, "extends"), name, chain), own)


def with_tasks(data: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe with every `use` replaced by the task file's keys; plain task blocks stay as they are.

    With `evaluation.folder`, each test says the folder in it that it reads.
    """
    data = dict(data)
    if "task" in data:
        data["task"] = used(data["task"], "task")
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("tests"), list):
        evaluation = dict(evaluation)
        tests = [used(test, f"evaluation.tests.{index}") for index, test in enumerate(evaluation["tests"])]
        if tests and isinstance(evaluation.get("folder"), str):
            folder = Path(evaluation["folder"])
            tests = [_inside(folder, test, given) for test, given in zip(tests, evaluation["tests"], strict=True)]
        data["evaluation"] = {**evaluation, "tests": tests}
    return data


def _inside(folder: Path, test: Any, given: Any) -> Any:
    """Let a test read the folder named after the task file that it was `given` as."""
    if not isinstance(test, dict) or not isinstance(test.get("data"), dict):
        return test
    before = test["data"].get("folder")
    task_file = given if isinstance(given, str) else given.get("use")
    # A resolved recipe has forgotten the task file, but where it read a folder before, that has its name.
    name = Path(str(task_file)).stem if task_file else Path(before).name if before else str(test.get("name", ""))
    return {**test, "data": {**test["data"], "folder": str(folder / name)}}


def used(block: Any, field: str) -> Any:
    """Return a task block whose `use` is replaced by the task file's keys, with the block's own on top."""
    if isinstance(block, str):
        block = {"use": block}
    if not isinstance(block, dict) or "use" not in block:
        return block
    own = dict(block)
    name = own.pop("use")
    if not isinstance(name, str):
        raise UserError(f"{field}.use={name}: not a name; give a task file or a shipped task's name")
    base = read_block(name, f"{field}.use")
    if "use" in base:
        raise UserError(f"{field}.use={name}: uses {base['use']} itself; a task file stands alone")
    if "type" in own and own["type"] != base.get("type"):
        raise UserError(f"{field}.type={own['type']}: {name} is of type {base.get('type')}; remove one of use and type")
    return merged({"name": Path(name).stem, **base}, own)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top, block by block; a block that names another thing replaces the whole block."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        bare = BARE_NAMES.get(key)
        if bare and isinstance(below, str):
            below = {bare: below}
        if bare and isinstance(value, str):
            value = {bare: value}
        joins = isinstance(below, dict) and isinstance(value, dict) and not _names_another(key, below, value)
        result[key] = merged(below, value) if joins else value  # type: ignore[arg-type]
    return result


def _names_another(key: str, below: dict[str, Any], value: dict[str, Any]) -> bool:
    words = IDENTITY.get(key, ())
    known = any(below.get(word) is not None for word in words)
    return known and any(value.get(word) is not None and value[word] != below.get(word) for word in words)
