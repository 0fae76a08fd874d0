"""The exported LoRA brought closer to the routed model: a few steps on its outputs, on calibration rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from ..tasks import Processor
from ..tasks.image_classification import model_inputs

LEARNING_RATE = 1e-3


def distill(
    student: nn.Module,
    teacher: nn.Module,
    trainer: Trainer,
    processor: Processor,
    steps: int,
    watch: Callable[[int, float], None],
) -> list[float]:
    """Train the student's LoRA factors, and nothing else, for `steps` batches; returns each step's divergence.

    AdamW, no weight decay, the rate falling from 1e-3 to 0 in a cosine. Both models run in eval mode: no dropout.

    Args:
        trainer: gives the batches.
        watch: takes (steps done, divergence).
    """
    factors = [p for name, p in student.named_parameters() if "lora_A" in name or "lora_B" in name]
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in factors:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(factors, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    found: list[float] = []
    student.eval()
    teacher.eval()
    for batch in _forever(trainer):
        if len(found) == steps:
            break
        with torch.no_grad():
            wanted = logits_of(teacher, batch, processor)
        loss = divergence(logits_of(student, batch, processor), wanted, batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(loss.item())
        watch(len(found), found[-1])
    return found


def logits_of(model: nn.Module, batch: dict[str, Any], processor: Processor) -> Tensor:
    """The model's logits for a batch of the task's trainer."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "pixel_values" in inputs:
        inputs = model_inputs(model, inputs, processor)  # type: ignore[arg-type]
    return model(**inputs).logits


def divergence(found: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """Mean `KL(wanted || found)` in nats: per row for a head's logits (rows, classes), per token that has a label for (rows, length, words).

    For a head of one output, which is a number and no distribution, the mean squared difference.
    """
    found, wanted = found.float(), wanted.float()
    if found.shape[-1] == 1:
        return F.mse_loss(found, wanted)
    if found.dim() == 3:
        counted = labels[:, 1:] != -100
        found, wanted = found[:, :-1][counted], wanted[:, :-1][counted]
        if len(found) == 0:
            return found.sum()
    return F.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum") / len(found)


def _forever(trainer: Trainer) -> Iterator[dict[str, Any]]:
    loader = trainer.get_train_dataloader()
    while True:
        yield from loader
