"""Comparisons: methods x learning rates x seeds x recipes, and what can be said of them."""

from .driver import compare, outlook
from .known import read_known
from .plan import Plan, load_plan, shipped_plans

__all__ = ["Plan", "compare", "load_plan", "outlook", "read_known", "shipped_plans"]
