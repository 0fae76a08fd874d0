"""The command `goat`: one file per verb."""

from .app import main

__all__ = ["main"]
