"""Transformers' and TRL's trainers with the right loss scale, and the balance loss in the log.

Loss scale. Transformers asks a model's signature whether its loss divides by `num_items_in_batch`. Sequence and image
classification heads take the keyword and ignore it, so with accumulation the gradients come out multiplied by the
number of accumulation steps. Those trainers set `model_accepts_loss_kwargs = False`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from trl import SFTTrainer


class BalanceLog:
    """Mix-in for a Trainer: logs the mean balance loss since the last log as `balance_loss`.

    Values stay on their device until a log asks for them, so that no step waits for one.
    """

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the trainer does, and remember the forward's balance loss."""
        outcome = super().compute_loss(model, inputs, *args, **kwargs)
        aux = balance_loss(self.accelerator.unwrap_model(model)) if model.training else None
        if aux is not None:
            self.__dict__.setdefault("_balance", []).append(aux)
        return outcome

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the balance loss beside the training loss."""
        pending = self.__dict__.get("_balance")
        if pending and "loss" in logs:
            logs["balance_loss"] = torch.stack(pending).mean().item()
            pending.clear()
        super().log(logs, *args, **kwargs)


class ClassificationTrainer(BalanceLog, Trainer):
    """Trainer for heads whose loss ignores `num_items_in_batch`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class GenerationTrainer(BalanceLog, SFTTrainer):
    """SFTTrainer with the balance loss in its log."""


def balance_loss(model: nn.Module) -> torch.Tensor | None:
    """Return the last training forward's balance loss L_b without its coefficient, or None for a model without experts."""
    get = getattr(model, "get_balance_loss", None)
    return None if get is None else get()
