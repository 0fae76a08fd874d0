"""Text classification's figures: by name, from their definitions, classes and numbers alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.tasks import Scoring, bind
from goat_peft.tasks.text_classification import figures
from goat_peft.training import train
from goat_peft.training.loading import load_base, load_processor


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TRUTH = [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
GUESS = [1, 0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_figures_of_two_classes_from_their_definitions() -> None:
    hit, false, missed, other = 3, 1, 1, 5
    root = ((hit + false) * (hit + missed) * (other + false) * (other + missed)) ** 0.5
    found = figures(["matthews", "accuracy", "f1"], TRUTH, GUESS, ["no", "yes"])
    assert list(found) == ["matthews", "accuracy", "f1"]
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["f1"] == pytest.approx(2 * hit / (2 * hit + false + missed))
    assert found["matthews"] == pytest.approx((hit * other - false * missed) / root)


def test_f1_of_three_classes_is_the_mean_even_where_only_two_occur() -> None:
    # Of classes 0 and 1: 2 * 6 / (2 * 6 + 1 + 1) would be the first's; the mean, not the one of class 1, is wanted.
    found = figures(["f1"], TRUTH, GUESS, ["a", "b", "c"])["f1"]
    assert found == pytest.approx((2 * 5 / (2 * 5 + 2) + 2 * 3 / (2 * 3 + 2)) / 2)


def test_correlations_of_numbers() -> None:
    truth, guess = [0.0, 1.0, 2.5, 5.0], [1.0, 1.5, 9.0, 7.0]
    found = figures(["pearson", "spearman"], truth, guess, None)
    assert found["pearson"] == pytest.approx(np.corrcoef(truth, guess)[0, 1])
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert figures(["pearson", "spearman"], truth, [1.0] * 4, None) == {"pearson": 0.0, "spearman": 0.0}


@pytest.fixture
def scored(classify: dict, tmp_path: Path) -> dict[str, Any]:
    """A recipe that predicts a number from a sentence: how good the film is."""
    words = ["awful", "bad", "dull", "fun", "good", "great"]
    rows = [{"text": f"the film is {words[i % 6]}", "score": float(i % 6), "film": i} for i in range(48)]
    classify["task"] |= {"labels": None, "label": "score"}
    classify["task"]["data"]["train"] = {"path": str(write_rows(tmp_path / "scores.jsonl", rows))}
    return classify


def test_a_number_is_learned_and_reported_under_its_own_figures(scored: dict) -> None:
    scored["training"] |= {"epochs": 12, "learning_rate": 0.02}
    scored["method"] = {"name": "full"}
    run = train(recipes.check(scored))
    rows = run.result["train_info"]["metrics"]
    assert rows[-1]["test pearson"] > 0.7 and rows[-1]["test spearman"] > 0.6
    assert "test accuracy" not in rows[-1] and any("valid pearson" in row for row in rows)
    predictions = [json.loads(line) for line in (run.path / "predictions.jsonl").read_text().splitlines()]
    assert all(isinstance(row["prediction"], float) and "correct" not in row for row in predictions)


def test_the_named_figures_are_reported_and_the_first_stands_for_the_task(classify: dict) -> None:
    classify["task"] |= {"metrics": ["matthews", "accuracy"]}
    classify["training"] |= {"max_steps": 1, "epochs": None}
    recipe = recipes.check(classify)
    assert bind(recipe.task).main_metric == "matthews"
    last = train(recipe).result["train_info"]["metrics"][-1]
    assert {"test matthews", "test accuracy"} <= set(last) and "test f1" not in last


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ["acuracy"]}, "task.metrics=acuracy: .* did you mean accuracy"),
        ({"labels": None, "metrics": ["accuracy"]}, "task.metrics=accuracy: .* pearson, spearman"),
        ({"labels": ["one"]}, r"task.labels=\['one'\]"),
    ],
)
def test_figures_that_do_not_fit_the_labels_are_refused(classify: dict, changes: dict, said: str) -> None:
    classify["task"] |= changes
    with pytest.raises(UserError, match=said):
        recipes.check(classify)


def test_a_row_without_a_number_is_named(scored: dict) -> None:
    scored["task"] |= {"label": "text"}
    with pytest.raises(UserError, match="task.label=text: row 0 of evaluation has 'the film is .*, which is no number"):
        train(recipes.check(scored))


def test_dropout_is_off_while_scoring_and_every_module_s_mode_comes_back(classify: dict) -> None:
    recipe = recipes.check(classify)
    task = bind(recipe.task)
    processor = load_processor(recipe.model, task)
    model = load_base(recipe.model, task, processor)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    rows = task.load().test
    model.eval()
    expected = task.evaluate(model, rows, processor, Scoring(batch_size=3)).predictions
    model.train()
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    for batch_size in (3, 16):
        assert task.evaluate(model, rows, processor, Scoring(batch_size=batch_size)).predictions == expected
    assert [module.training for module in model.modules()] == modes


def test_texts_that_max_length_cuts_are_counted(classify: dict) -> None:
    recipe = recipes.check(classify)
    for longest in (3, 4, 5, 64):
        task = bind(recipe.task.model_copy(update={"max_length": longest}))
        processor = load_processor(recipe.model, task)
        rows = task.load().train
        whole = [len(ids) for ids in processor(list(rows[recipe.task.text]))["input_ids"]]
        task.prepare(rows, processor, "train")
        expected = {"train": len(rows), "cut": sum(length > longest for length in whole), "dropped": 0}
        assert task.train_rows == expected
    assert expected["cut"] == 0
