"""A recipe over pictures drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """A recipe that tells dark pictures from bright ones, in batches of 6 and a last one of 4."""
    for index in range(22):
        place = tmp_path / "data" / "train" / ("bright" if index % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 100, (32, 32, 3)) + 150 * (index % 2)
        Image.fromarray(noise.astype(np.uint8)).save(place / f"{index}.png")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return {
        "name": "tiny-pictures",
        "model": {"name": str(tmp_path / "vit"), "dtype": "float32"},
        "task": {
            "type": "image_classification", "data": {"train": {"path": str(tmp_path / "data" / "train")}},
            "normalization": "half", "image_size": 32, "workers": 0,
        },
        "method": {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.0},
        "training": {"learning_rate": 0.003, "epochs": 3, "batch_size": 6, "logging_steps": 1},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
