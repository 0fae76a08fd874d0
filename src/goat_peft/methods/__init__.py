"""Methods: one file each. A new file that calls `register` is all that a new method needs; `docs/methods.md` shows one."""

from .base import GRID, Method, check_targets, register

__all__ = ["GRID", "Method", "check_targets", "register"]
