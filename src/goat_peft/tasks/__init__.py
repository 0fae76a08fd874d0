"""Task families: one file each. A new file that calls `register` is all that a new family needs."""

from . import processes
from .base import DataTask, Family, Processor, Progress, Scores, Scoring, Task, bind, register
from .data import Splits, load_splits, resolve_path
from .kept import Kept

__all__ = [
    "DataTask",
    "Family",
    "Kept",
    "Processor",
    "Progress",
    "Scores",
    "Scoring",
    "Splits",
    "Task",
    "bind",
    "load_splits",
    "processes",
    "register",
    "resolve_path",
]
