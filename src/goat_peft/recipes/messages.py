"""Pydantic's errors as one line each: the field, the value given, what would work."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import closest
from .schema import METHODS, TASKS, Recipe, TaskOptions

FAMILIES = {"method": (METHODS, "name"), "task": (TASKS, "type")}


def lines(
    error: ValidationError, data: dict[str, Any], at: tuple[str, ...] = (), root: type[BaseModel] = Recipe
) -> list[str]:
    """Turn a validation error into lines such as `training.epochs=abc: should be a number`.

    Args:
        data: the recipe, or what `root` describes, as plain data.
        at: where in it the block lies that was validated; the whole when empty.
    """
    said: dict[str, list[str]] = {}
    for item in _flatten(error, at):
        field, _, message = _line(item, data, root).partition(": ")
        if message not in said.setdefault(field, []):
            said[field].append(message)
    # Several messages for one field are the branches of a union: a number, or a table of numbers.
    return [f"{field}: {' or '.join(messages)}" for field, messages in said.items()]


def _flatten(error: ValidationError, prefix: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
    """List all errors with their full location, also those of a method's or task's own options."""
    found = []
    for item in error.errors(include_url=False):
        location = prefix + tuple(item["loc"])
        if item["type"] == "nested":
            found += _flatten(item["ctx"]["error"], location)
        else:
            found.append({**item, "loc": location})
    return found


def _line(item: dict[str, Any], data: dict[str, Any], root: type[BaseModel]) -> str:
    # A union's branch is part of pydantic's location ("learning_rate.float"); a user's recipe has no such key.
    location = tuple(part for part in item["loc"] if _is_key(part, item["loc"], data, root))
    field = ".".join(map(str, location)) or root.__name__.lower()
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        parent = _model_at(location[:-1], data, root)
        hint = closest(str(location[-1]), parent.model_fields) if parent else "remove it"
        return f"{field}={_short(given)}: unknown key; {hint}"
    if kind == "missing":
        return f"{field}: missing; {_help(location, data, root) or 'give it a value'}"
    if kind == "unknown_family":
        key = item["ctx"]["key"]
        value = given.get(key) if isinstance(given, dict) else given
        return f"{field}.{key}={_short(value)}: {item['msg']}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "string_type" and isinstance(given, dict):
        # `task.prompt={nope}`: YAML reads braces without quotes as a mapping.
        text = ", ".join(str(key) if value is None else f"{key}: {value}" for key, value in given.items())
        return (
            f"{field}={{{_short(text)}}}: is a mapping in YAML; a text in braces needs quotes, '\"{{{_short(text)}}}\"'"
        )
    if isinstance(given, (dict, BaseModel)):
        # A rule over several keys of a block; by convention its message starts with the key at fault.
        if not re.match(r"[\w.]+=", message):
            return f"{field}: {message}"
        return f"{field}.{message}" if location else message
    if re.match(r"[a-z_]+=", message):  # a bare name in the place of a block
        return f"{field}.{message}"
    return f"{field}={_short(given)}: {message}".replace("\n", " ")


def _is_key(part: Any, location: tuple[Any, ...], data: dict[str, Any], root: type[BaseModel]) -> bool:
    """Tell whether a part of an error's location is a key or index of the recipe rather than a union's branch."""
    if isinstance(part, int):
        return True
    index = location.index(part)
    parent = _model_at(tuple(location[:index]), data, root)
    if parent is not None:
        return part in parent.model_fields or index == len(location) - 1
    return not any(mark in part for mark in ("float", "int", "str", "dict[", "list[", "bool", "constrained"))


def _model_at(location: tuple[Any, ...], data: dict[str, Any], root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the pydantic model that describes the block at `location`, or None inside a plain value."""
    model: type[BaseModel] | None = root
    block: Any = data
    for part in location:
        inside = isinstance(block, list) and isinstance(part, int) and part < len(block)
        block = block[part] if inside else block.get(part) if isinstance(block, dict) else None
        if isinstance(part, int):
            # An element of a list: of the model that the list's annotation names.
            family = "task" if model is TaskOptions else None
        elif model is None or part not in model.model_fields:
            return None
        else:
            family = part if model is Recipe and part in FAMILIES else None
            model = None if family else _inner_model(model.model_fields[part].annotation)
        if family:
            registry, key = FAMILIES[family]
            name = block.get(key) if isinstance(block, dict) else block
            model = registry[str(name)].options if name in registry else None
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """Find the pydantic model in an annotation such as `Source | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None


def _help(location: tuple[Any, ...], data: dict[str, Any], root: type[BaseModel]) -> str | None:
    parent = _model_at(location[:-1], data, root)
    if parent is None or location[-1] not in parent.model_fields:
        return None
    return parent.model_fields[location[-1]].description


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
