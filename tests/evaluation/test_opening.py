"""Tests are looked at before a model is loaded: their heads' outputs, their rows; and what tells rows and bases apart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as Picture

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.recipes import ModelSettings
from goat_peft.tasks import bind
from goat_peft.training import digests, train
from goat_peft.training import run as run_module
from goat_peft.training.evaluation import open_tests


def opened(data: dict[str, Any]) -> list[Any]:
    recipe = recipes.check(data)
    return open_tests(bind(recipe.task), recipe.evaluation)


@pytest.mark.parametrize(
    ("labels", "other"),
    [
        (["rotten", "fresh", "neither"], r"3 \(rotten, fresh, neither\)"),
        (["fresh", "rotten"], r"2 \(fresh, rotten\)"),
        (None, r"1 \(a number\)"),
    ],
)
def test_a_test_with_other_classes_than_the_head_s_is_refused(classify: dict, labels: Any, other: str) -> None:
    own = classify["task"] | {"name": "own", "data": {"test": classify["task"]["data"]["train"]}}
    classify["evaluation"] = {"tests": [own, own | {"name": "again"}]}
    assert [len(test.rows) for test in opened(classify)] == [64, 64]
    classify["evaluation"]["tests"][1]["labels"] = labels
    said = rf"^evaluation.tests=again: its labels are {other}, and the head of the task has 2 \(rotten, fresh\)"
    with pytest.raises(UserError, match=said):
        opened(classify)


def pictures(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
        Picture.new("RGB", (4, 4)).save(folder / name / "0.png")
    return str(folder)


def test_an_image_test_with_other_classes_is_refused(tmp_path: Path) -> None:
    def block(name: str, path: str) -> dict[str, Any]:
        return {"type": "image_classification", "name": name, "data": {"train": {"path": path}, "test": {"path": path}}}

    birds, boats = (pictures(tmp_path / kind, [f"{kind}-{i}" for i in "ab"]) for kind in ("birds", "boats"))
    data = {"name": "x", "model": "m", "method": "lora", "task": block("birds", birds)}
    assert len(opened(data | {"evaluation": {"tests": [block("same", birds)]}})[0].rows) == 2
    with pytest.raises(UserError, match=r"tests=boats: .*boats-a, boats-b.*head of birds has 2 \(birds-a, birds-b\)"):
        opened(data | {"evaluation": {"tests": [block("boats", boats)]}})


def test_the_two_tests_of_mnli_fit_one_head() -> None:
    recipe = recipes.load("mnli-minilm")
    assert all(bind(test).outputs == bind(recipe.task).outputs for test in recipe.evaluation.tests)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model is too early."""
    monkeypatch.setattr(run_module, "load_base", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer_pattern": "never (x)"}, "task.answer_pattern=never .*: does not match the answer of row 0"),
        ({"compare": "number"}, "task.compare=number: the answer of row 0"),
        ({"score": "likelihood", "options": ["yes", "no"]}, "task.options: row 0 chooses from yes, no"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_bad_reference_answers_stop_before_training(
    generate: dict, no_model: None, changes: dict, said: str, named: bool
) -> None:
    if named:
        test = {key: value for key, value in generate["task"].items() if key != "response"} | changes
        generate["evaluation"]["tests"] = [test | {"name": "own", "data": {"test": test["data"]["test"]}}]
    else:
        generate["task"] |= changes
    with pytest.raises(UserError, match=("^evaluation.tests=own: " if named else "^") + said):
        train(recipes.check(generate))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "fun", "label": "stale"}, "task.labels=.*: row 1 of evaluation has label='stale'"),
        ({"text": " ", "label": "fresh"}, "task.text=text: row 1 of evaluation is empty"),
    ],
)
def test_bad_test_labels_and_texts_stop_before_training(
    classify: dict, no_model: None, tmp_path: Path, row: dict, said: str
) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"text": "dull", "label": "rotten"}) + "\n" + json.dumps(row) + "\n")
    classify["task"]["data"] |= {"test": {"path": str(file)}, "cut": None}
    with pytest.raises(UserError, match=said):
        train(recipes.check(classify))


def test_a_changed_picture_is_another_row(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "seen", ["a", "b"])
    rows = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=str(tmp_path / "cache"))
    before = digests.of_rows(rows)
    assert digests.of_rows(rows) == before
    changed = tmp_path / "seen" / "b" / "0.png"
    os.utime(changed, ns=(1, 1))
    assert digests.of_rows(rows) != before


def test_rows_of_bytes_and_of_addresses_have_a_digest() -> None:
    kept = [{"bytes": b"x", "path": None}, {"bytes": None, "path": "https://no.example/a.png"}, None]
    rows = Dataset.from_dict({"image": kept}, features=Features({"image": Image(decode=False)}))
    assert digests.of_rows(rows) == digests.of_rows(rows)


def test_a_hub_base_is_told_apart_by_its_commit(monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> None:
    found = []
    for commit in ("1" * 40, "2" * 40):
        place = f"/cache/models--org--model/snapshots/{commit}/config.json"
        monkeypatch.setattr(digests, "cached_file", lambda *_, place=place, **__: place)
        found.append(digests.of_base(ModelSettings(name="org/model")))
    assert found[0] != found[1] and found[0]["commit"] == "1" * 40
    assert digests.of_base(ModelSettings(name=str(tiny_bert_dir)))["commit"] is None

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(digests, "cached_file", fails)
    assert digests.of_base(ModelSettings(name="org/model"))["commit"] is None
