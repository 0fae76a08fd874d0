"""The scripts behind the figures in `results/` still import what they need, and what one of them works out agrees with what it stands in for."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from goat_peft.compare.statistics import Difference, Resampled, average, resample

SCRIPTS = sorted((Path(__file__).parents[1] / "results").glob("*.py"))


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"results_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports(script: Path) -> None:
    assert load(script).main


def test_an_average_and_one_more_task_have_the_interval_of_all_drawn_together() -> None:
    generator = np.random.default_rng(0)
    tasks = [task(generator, seeds, spread) for seeds, spread in ((3, 0.01), (5, 0.03), (5, 0.01), (3, 0.02))]
    whole = average(tasks).difference("a", "b")
    parts = [gap(average(tasks[:3]).difference("a", "b")), gap(tasks[3].difference("a", "b"))]
    found = load(next(script for script in SCRIPTS if script.stem == "combine")).joined(parts, [3, 1], [math.inf, 2.0])
    assert found["difference"] == pytest.approx(whole.mean)
    assert whole.low is not None and whole.high is not None
    width = whole.high - whole.low
    assert found["low"] == pytest.approx(whole.low, abs=0.1 * width)
    assert found["high"] == pytest.approx(whole.high, abs=0.1 * width)
    assert (
        0.75 * (parts[0]["high"] - parts[0]["low"]) < 0.9 * width
    )  # or the check above would pass for the first part alone


def task(generator: np.random.Generator, seeds: int, spread: float) -> Resampled:
    """Two methods' right and wrong answers on 400 rows, whose shares differ from seed to seed."""
    shares = 0.8 + spread * generator.standard_normal((2, seeds, 1))
    return resample(["a", "b"], [(generator.random((2, seeds, 400)) < shares).astype(np.float64)], generator, 2000)


def gap(found: Difference) -> dict[str, float | None]:
    return {"difference": found.mean, "low": found.low, "high": found.high}
