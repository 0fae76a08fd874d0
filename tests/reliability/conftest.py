"""A GOAT adapter on a tiny base, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bases import fresh_base, logits
from peft import get_peft_model
from torch import Tensor

from goat_peft import GoatConfig


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A trained adapter with a trained module beside it, and the logits it gives."""
    config = GoatConfig(
        r=8, num_experts=4, target_modules=["q_proj", "up_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    model = get_peft_model(fresh_base(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture
def copied(saved: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return Path(shutil.copytree(saved[0], tmp_path / "adapter"))
