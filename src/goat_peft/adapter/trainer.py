"""The balance loss for trainers that compute the loss themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BalanceLossMixin:
    """Adds the balance loss in `compute_loss` where the model could not: label smoothing, custom losses, preference trainers.

    Use it in front of any transformers or TRL trainer: `class MyTrainer(BalanceLossMixin, Trainer): pass`. Where the model's own loss already
    carries the balance loss, it adds nothing.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        share = self._share_of_accumulated_batch(inputs, num_items_in_batch)
        routing = self.accelerator.unwrap_model(model).routing  # type: ignore[attr-defined]
        routing.left_to_trainer = True
        try:
            outcome = super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        finally:
            routing.left_to_trainer = False
        if not model.training:
            return outcome
        aux = routing.undelivered_loss()
        if aux is None:
            return outcome
        return (outcome[0] + aux * share, outcome[1]) if return_outputs else outcome + aux * share

    def _share_of_accumulated_batch(self, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """Weight of this micro-batch: 1 where the trainer divides by their number itself; else its share of the batch's label tokens, or an even one."""
        if not self._comes_scaled(num_items_in_batch):
            return 1.0
        if num_items_in_batch is None or not isinstance(inputs.get("labels"), Tensor):
            return 1.0 / getattr(self, "current_gradient_accumulation_steps", 1)
        items = counted_labels(inputs, getattr(self, "_loss_shifts_labels", False))
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1  # type: ignore[attr-defined]
        return items * processes / torch.as_tensor(num_items_in_batch, device=items.device)

    def _comes_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss comes scaled for accumulation, so that the Trainer divides it no more; its own rule."""
        told = getattr(self, "loss_is_scaled_for_ga", None)
        if told is not None:
            return bool(told)
        accepts = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
        return bool(accepts) or self.compute_loss_func is not None  # type: ignore[attr-defined]


def counted_labels(inputs: dict[str, Any], shifts: bool) -> Tensor:
    """Number of label tokens that enter the loss, counted as transformers' Trainer counts `num_items_in_batch`."""
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if shifts else inputs["labels"]
    return labels.ne(-100).sum()
