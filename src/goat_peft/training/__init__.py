"""Runs: a recipe trained, scored and written to a folder."""

from .callbacks import Interrupted
from .evaluation import evaluate_run
from .run import Run, train

__all__ = ["Interrupted", "Run", "evaluate_run", "train"]
