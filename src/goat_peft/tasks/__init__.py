"""Task families: one file each. A new file that calls `register` is all that a new family needs."""

from .base import DataTask, Family, Progress, Scores, Task, bind, register
from .data import Splits, load_splits, resolve_path

__all__ = [
    "DataTask",
    "Family",
    "Progress",
    "Scores",
    "Splits",
    "Task",
    "bind",
    "load_splits",
    "register",
    "resolve_path",
]
