"""GOAT (Great LoRA Mixture-of-Experts, ICML 2025) as a PEFT method. Importing this package registers method `goat` with PEFT."""

from goat_peft.adapter import BalanceLossMixin, GoatConfig, GoatModel, initialize_together

__version__ = "0.1.0"

__all__ = ["BalanceLossMixin", "GoatConfig", "GoatModel", "__version__", "initialize_together"]
