"""Recipes: the typed form, its loader, and the ones that ship with the package."""

from .loader import apply_override, check, is_stored, load, load_task, read, to_yaml
from .schema import About, Cut, Data, Evaluation, MethodOptions, ModelSettings, Recipe, Source, TaskOptions, Training
from .shelf import families, read_task_text, read_text, shipped, task_files

__all__ = [
    "About",
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
    "families",
    "is_stored",
    "load",
    "load_task",
    "read",
    "read_task_text",
    "read_text",
    "shipped",
    "task_files",
    "to_yaml",
]
