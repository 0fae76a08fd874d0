"""What may be written over: folders of a run or of an evaluation, and never others that hold files of the same names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goat_peft import recipes, records
from goat_peft.errors import UserError
from goat_peft.training import evaluate, train
from goat_peft.training.folder import open_folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of the user's whose names are those of a run's and an evaluation's parts."""
    for name in (records.TESTS, records.SCORING, records.FASTCHAT, "model", "adapter", "checkpoints"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "mine.py").write_text("x")
    return tmp_path / "project"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def task(questions: Path, tmp_path: Path) -> str:
    """A task of three rows."""
    (tmp_path / "few.jsonl").write_text("".join(questions.read_text().splitlines(keepends=True)[:3]))
    data = {"test": {"path": str(tmp_path / "few.jsonl")}}
    block = {"type": "generation", "prompt": "{instruction}", "answer": "{answer}", "extract": "a", "max_new_tokens": 1}
    (tmp_path / "few.yaml").write_text(json.dumps(block | {"data": data}))
    return str(tmp_path / "few.yaml")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_evaluation_leaves_a_folder_of_other_files_alone(
    tiny_llama_dir: Path, task: str, project: Path, overwrite: bool
) -> None:
    before = files(project)
    with pytest.raises(UserError, match=r"^--output .*project: holds files that are not an evaluation's"):
        evaluate(tiny_llama_dir, tasks=[task], output=project, overwrite=overwrite)
    (project / records.EVALUATION).write_text('{"of": "mine"}')
    with pytest.raises(UserError, match="not an evaluation's"):
        evaluate(tiny_llama_dir, tasks=[task], output=project, overwrite=overwrite)
    assert files(project) == sorted([*before, project / records.EVALUATION])


def test_an_evaluation_s_own_folder_is_scored_again_when_asked(tiny_llama_dir: Path, task: str, tmp_path: Path) -> None:
    first = evaluate(tiny_llama_dir, tasks=[task], output=tmp_path / "own")
    (first.path / "notes.txt").write_text("mine")
    assert evaluate(tiny_llama_dir, tasks=[task], output=tmp_path / "own", overwrite=True).findings is not None
    assert (first.path / "notes.txt").read_text() == "mine"
    # One that was cut off has its kept rows alone, and goes on.
    (first.path / records.EVALUATION).unlink()
    (first.path / records.SCORING).mkdir()
    (first.path / records.SCORING / "score-few.jsonl").write_text('{"key": "other"}\n')
    assert evaluate(tiny_llama_dir, tasks=[task], output=tmp_path / "own").findings is not None


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_evaluation_never_writes_into_a_run_or_what_it_scores(
    tiny_llama_dir: Path, classify: dict, task: str, tmp_path: Path, overwrite: bool
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / records.RECIPE).write_text(recipes.to_yaml(recipes.check(classify)))
    (run / records.PREDICTIONS).write_text("{}\n")
    for place in (run, tiny_llama_dir):
        before = files(place)
        with pytest.raises(UserError, match=r"^--output .*: is a run's folder or what is scored"):
            evaluate(tiny_llama_dir, tasks=[task], output=place, overwrite=overwrite)
        assert files(place) == before


@pytest.mark.parametrize("own", ["", "name: mine\n", "RESOLVED"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_training_leaves_a_folder_of_other_files_alone(
    classify: dict, project: Path, own: str, overwrite: bool
) -> None:
    recipe = recipes.check(classify | {"output_dir": str(project)})
    if own:
        (project / records.RECIPE).write_text(own.replace("RESOLVED", recipes.to_yaml(recipe)))
    before = files(project)
    with pytest.raises(UserError, match="output_dir=.*: holds files that are not a run's"):
        open_folder(recipe, resume=False, overwrite=overwrite)
    assert files(project) == before


def test_a_replaced_run_keeps_no_page_of_the_old_one(classify: dict) -> None:
    recipe = recipes.check(classify)
    folder, _ = open_folder(recipe, resume=False, overwrite=False)
    records.write_json(folder.result, {"train_info": {"status": "success"}})
    records.write_text(folder.path / records.VIEW, "<html>")
    records.write_text(folder.path / records.TESTS / "a" / records.PREDICTIONS, "{}\n")
    open_folder(recipe, resume=False, overwrite=True)
    assert files(folder.path) == [folder.recipe]


def test_a_folder_for_tests_needs_tests(classify: dict) -> None:
    classify["evaluation"] |= {"folder": "/data"}
    with pytest.raises(UserError, match="^evaluation.folder=/data: needs evaluation.tests; give task.data.folder"):
        train(recipes.check(classify))
    assert not Path(classify["output_dir"]).exists()
