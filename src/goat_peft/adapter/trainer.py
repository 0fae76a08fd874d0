"""The balance loss for trainers that compute the loss themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BalanceLossMixin:
    """Adds the balance loss in `compute_loss` where the model could not: label smoothing, custom losses, preference trainers.

    Use it in front of any transformers or TRL trainer: `class MyTrainer(BalanceLossMixin, Trainer): pass`. Where the model's own loss, or TRL's
    fused log-probabilities, already carry the balance loss, it adds nothing.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        share = self._share_of_accumulated_batch(inputs, num_items_in_batch)
        outcome = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )  # type: ignore[misc]
        if not model.training:
            return outcome
        aux = self.accelerator.unwrap_model(model).routing.undelivered_loss()  # type: ignore[attr-defined]
        if aux is None:
            return outcome
        return (outcome[0] + aux * share, outcome[1]) if return_outputs else outcome + aux * share

    def _share_of_accumulated_batch(self, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """Weight of this micro-batch: 1 where the trainer averages micro-batches itself, else its share of the batch's label tokens."""
        normalised = num_items_in_batch is not None and (
            self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        )  # type: ignore[attr-defined]
        if not normalised or not isinstance(inputs.get("labels"), Tensor):
            return 1.0
        items = counted_labels(inputs, getattr(self, "_loss_shifts_labels", False))
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1  # type: ignore[attr-defined]
        return items * processes / torch.as_tensor(num_items_in_batch, device=items.device)


def counted_labels(inputs: dict[str, Any], shifts: bool) -> Tensor:
    """Number of label tokens that enter the loss, counted as transformers' Trainer counts `num_items_in_batch`."""
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if shifts else inputs["labels"]
    return labels.ne(-100).sum()
