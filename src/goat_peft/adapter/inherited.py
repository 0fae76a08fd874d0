"""The fields that PEFT reads by itself: a value of another type would end in an error far from its cause, or in another meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import GoatConfig


def check_inherited(config: GoatConfig, need: Callable[[bool, str, str], None]) -> None:
    """Check names of modules and layers, and what a saved config says of itself; `need(ok, field, what would work)` raises."""

    def is_int(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def is_names(value: Any) -> bool:
        return isinstance(value, list | set | tuple) and all(isinstance(name, str) and name for name in value)

    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        text = isinstance(value, str)
        need(value is None or text or is_names(value), name, "must be a name pattern or a list of names")
        need(not text or _compiles(value), name, "is not a regular expression")
    need(
        config.modules_to_save is None or is_names(config.modules_to_save),
        "modules_to_save",
        "must be a list of names",
    )
    layers = config.layers_to_transform
    need(
        layers is None or is_int(layers) or (isinstance(layers, list | set | tuple) and all(map(is_int, layers))),
        "layers_to_transform",
        "must be a whole number or a list of them",
    )
    pattern = config.layers_pattern
    need(
        pattern is None or isinstance(pattern, str) or is_names(pattern),
        "layers_pattern",
        "must be a name or a list of names",
    )
    for name in ("base_model_name_or_path", "revision", "peft_version"):
        value = getattr(config, name)
        need(value is None or isinstance(value, str), name, "must be a text or null")
    for name in ("inference_mode", "fan_in_fan_out", "check_base_weights", "check_integrity"):
        need(isinstance(getattr(config, name), bool), name, "must be true or false")
    digest = config.settings_digest
    need(digest is None or isinstance(digest, dict), "settings_digest", "must be as it was written, or be left out")
    need(
        config.auto_mapping is None or isinstance(config.auto_mapping, dict),
        "auto_mapping",
        "must hold keys or be null",
    )


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
