"""What a recipe will take before it runs: memory by running the real code for its sizes, time from its operations."""

from .estimate import STRATEGIES, TFLOPS, Parts, Plan, Strategy, plan

__all__ = ["STRATEGIES", "TFLOPS", "Parts", "Plan", "Strategy", "plan"]
