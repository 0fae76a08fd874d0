"""Parameters with a learning rate of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from goat_peft.errors import UserError
from goat_peft.tasks.trainers import ClassificationTrainer


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A, self.lora_B, self.classifier = nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2)


def _trainer(folder: Path, **patterns: dict[str, float]) -> ClassificationTrainer:
    arguments = TrainingArguments(str(folder), learning_rate=1e-4, weight_decay=0.1, use_cpu=True, report_to=[])
    trainer = ClassificationTrainer(_Net(), arguments)
    for field, value in patterns.items():
        setattr(trainer, field, value)
    return trainer


def _rates(trainer: ClassificationTrainer) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by name."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer  # asked twice, as DeepSpeed's set-up does
    assert isinstance(optimizer, torch.optim.AdamW)
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


def test_a_rate_of_its_own_comes_before_a_factor_and_decay_stays(tmp_path: Path) -> None:
    plain = _rates(_trainer(tmp_path))
    found = _rates(_trainer(tmp_path, rates={"classifier": 1e-3}, rate_factors={"lora_B": 4.0, "classifier": 50.0}))
    assert set(found) == set(plain) and len(found) == 6
    for name, (rate, decay) in found.items():
        wanted = 1e-3 if "classifier" in name else 4e-4 if "lora_B" in name else 1e-4
        assert rate == pytest.approx(wanted) and decay == plain[name][1]


@pytest.mark.parametrize("field", ["rates", "rate_factors"])
def test_a_pattern_that_finds_nothing_is_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"training\.{field}\.router=2: no trained parameter"):
        _trainer(tmp_path, **{field: {"router": 2.0}}).create_optimizer()
