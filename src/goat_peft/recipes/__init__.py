"""Recipes: the typed form, its loader, and the ones that ship with the package."""

from .loader import apply_override, check, load, read_text, shipped, to_yaml
from .schema import Cut, Data, Evaluation, MethodOptions, ModelSettings, Recipe, Source, TaskOptions, Training

__all__ = [
    "Cut",
    "Data",
    "Evaluation",
    "MethodOptions",
    "ModelSettings",
    "Recipe",
    "Source",
    "TaskOptions",
    "Training",
    "apply_override",
    "check",
    "load",
    "read_text",
    "shipped",
    "to_yaml",
]
