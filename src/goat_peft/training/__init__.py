"""Runs: a recipe trained, scored and written to a folder; and any model scored."""

from .callbacks import Interrupted
from .rescoring import Evaluated, evaluate
from .run import Run, train

__all__ = ["Evaluated", "Interrupted", "Run", "evaluate", "train"]
