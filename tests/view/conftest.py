"""Tiny GOAT runs on texts and on images, trained once for all tests of the page."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image
from tiny_runs import untrained_run
from transformers import ViTConfig, ViTForImageClassification

from goat_peft import recipes
from goat_peft.training import train

NUM_EXPERTS = 4


@pytest.fixture(scope="session")
def goat_run(classify_recipe: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps with four experts, two of them for each token."""
    recipe = classify_recipe(tmp_path_factory.mktemp("runs") / "tiny")
    recipe["method"] = {"name": "goat", "r": 8, "num_experts": NUM_EXPERTS, "scaling": 4.0}
    recipe["training"] = {"learning_rate": 0.01, "max_steps": 4, "batch_size": 8, "logging_steps": 1}
    recipe["evaluation"] = {"batch_size": 16, "every_steps": 2}
    return train(recipes.check(recipe)).path


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of 16 x 16 pixels, which a tiny vision transformer reads as 4 x 4 patches."""
    folder = tmp_path_factory.mktemp("images")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(folder / "model")
    rows = []
    for i in range(8):
        file = io.BytesIO()
        Image.new("RGB", (20, 16), (200 if i % 2 else 30, 90, 20 * i)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": i % 2})
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    data = {"path": str(folder / "rows.parquet")}
    recipe = {
        "name": "tiny-images",
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "task": {
            "type": "image_classification",
            "data": {"train": data, "test": data},
            "num_classes": 2,
            "image_size": 16,
            "normalization": "half",
        },
        "method": {"name": "goat", "r": 8, "num_experts": NUM_EXPERTS},
    }
    return untrained_run(recipe, folder / "run")
