"""A plan over the tiny encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def plan_file(classify: dict[str, Any], tmp_path: Path) -> Path:
    """Two methods, two rates, two seeds: eight runs of four steps each."""
    classify["training"] |= {"max_steps": 4, "epochs": None}
    classify["task"]["data"]["cut"] = {"validation": 8, "test": 16, "group_by": "film"}
    del classify["output_dir"]
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(classify))
    plan = {
        "name": "tiny",
        "recipes": [str(recipe)],
        "common": {"r": 8},
        "methods": [
            {"name": "lora", "learning_rates": [0.001, 0.02]},
            {"name": "molora", "learning_rates": [0.001, 0.02]},
        ],
        "seeds": [0, 1],
        "baseline": "lora",
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path
