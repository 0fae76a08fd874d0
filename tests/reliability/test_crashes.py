"""Kill -9 while training, saving and evaluating: what is resumed ends in the same bytes as an undisturbed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.peft_model
import pytest
import torch
from crashing import Watch, digest, draw, finish, go_on, kill_at, killed
from transformers import set_seed

from goat_peft import recipes, records
from goat_peft.recipes import Recipe
from goat_peft.tasks import bind
from goat_peft.tasks.text_classification import TextClassification
from goat_peft.training import callbacks, checkpoints, folder, train
from goat_peft.training.loading import load_base, load_processor, load_trained

KILLS = 20


@pytest.fixture
def recipe(classify_recipe: Callable[[Path], dict], tmp_path: Path) -> Callable[[str], Recipe]:
    """Ten steps of GOAT with dropout, a checkpoint every second step, scored row by row."""

    def build(name: str, **training: Any) -> Recipe:
        data = classify_recipe(tmp_path / name)
        data["method"] = {"name": "goat", "r": 8, "lora_dropout": 0.1, "target_modules": ["query", "value"]}
        data["training"] |= {"epochs": None, "max_steps": 10, "save_steps": 2} | training
        data["evaluation"] = {"batch_size": 1, "every_steps": 0}
        return recipes.check(data)

    return build


def path(recipe: Recipe) -> Path:
    return Path(recipe.output_dir)


def kill_now(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(nth: int) -> None:
    """From now on, in this process: the nth adapter file is written by half, then the kill comes."""
    save, calls = peft.peft_model.safe_save_file, []

    def interrupted(tensors: Any, file: str, **settings: Any) -> None:
        save(tensors, file, **settings)
        calls.append(file)
        if len(calls) == nth:
            os.truncate(file, os.path.getsize(file) // 2)
            kill_now()

    peft.peft_model.safe_save_file = interrupted


def test_three_kills_in_one_run_change_nothing(recipe: Callable[..., Recipe]) -> None:
    whole, cut = recipe("whole", max_steps=9), recipe("cut", max_steps=9)  # five steps make an epoch
    train(whole)

    def in_a_checkpoint() -> None:
        half_written(4)
        train(cut)

    killed(in_a_checkpoint)
    half = path(cut) / "checkpoints" / "checkpoint-8"
    assert (half / "adapter_model.safetensors").is_file() and not (half / checkpoints.COMPLETE).exists()

    def while_saving_the_result() -> None:
        half_written(2)  # checkpoint-8 again, then the trained adapter
        train(cut, resume=True)

    killed(while_saving_the_result)
    assert not (path(cut) / "adapter").exists() and folder.RunFolder(path(cut)).last_checkpoint().name == "checkpoint-8"

    def while_scoring() -> None:
        row, calls = TextClassification._row, []
        TextClassification._row = lambda *args: (calls.append(1), kill_now() if len(calls) == 5 else None, row(*args))[
            2
        ]
        train(cut, resume=True)

    killed(while_scoring)
    assert (path(cut) / records.TRAINED).is_file() and not (path(cut) / records.RESULT).exists()
    result = train(cut, resume=True).result
    assert digest(path(cut)) == digest(path(whole))
    assert (path(cut) / records.PREDICTIONS).read_bytes() == (path(whole) / records.PREDICTIONS).read_bytes()
    assert result["run_info"]["resumed_from"] == "checkpoint-8"
    assert {entry.name for entry in path(cut).iterdir()} == {entry.name for entry in path(whole).iterdir()}


def test_what_is_drawn_for_the_base_is_drawn_again_when_trained_weights_are_loaded(
    recipe: Callable[..., Recipe],
) -> None:
    """The tiny base has no pooler of its own, and nothing saves the one that training drew."""
    once = recipe("once", max_steps=2)
    task, loaded = bind(once.task), []
    run = train(once).path
    processor = load_processor(once.model, task)
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(load_trained(once, run, task, processor).state_dict())
    set_seed(once.training.seed)
    drawn = load_base(once.model, task, processor).state_dict()["bert.pooler.dense.weight"]
    for found in loaded:
        assert torch.equal(found["base_model.model.bert.pooler.dense.weight"], drawn)
    assert all(torch.equal(loaded[0][name], tensor) for name, tensor in loaded[1].items())


def test_a_damaged_checkpoint_is_passed_over_and_said_so(recipe: Callable[..., Recipe]) -> None:
    cut = recipe("cut", max_steps=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.RunFolder, "saving", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(cut)
    kept = [place.name for place in checkpoints.newest_first(path(cut) / "checkpoints")]
    assert kept == ["checkpoint-6", "checkpoint-4"]  # older ones went once these were whole
    optimizer = path(cut) / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    opened, checkpoint = folder.open_folder(cut, resume=True, overwrite=False)
    assert checkpoint.name == "checkpoint-4"
    assert opened.notes == (
        "checkpoint-6 was passed over, optimizer.pt is not as it was written; resumed from checkpoint-4",
    )
    assert not optimizer.exists()


def test_old_checkpoints_go_only_once_the_new_one_is_whole(recipe: Callable[..., Recipe]) -> None:
    cut = recipe("cut", max_steps=8)

    def work() -> None:
        seal, sealed = checkpoints.seal, []

        def interrupted(place: Path) -> None:
            sealed.append(place)
            if len(sealed) == 4:
                kill_now()
            seal(place)

        checkpoints.seal = interrupted
        train(cut)

    killed(work)
    found = {place.name: checkpoints.fault(place) is None for place in (path(cut) / "checkpoints").iterdir()}
    assert found == {"checkpoint-4": True, "checkpoint-6": True, "checkpoint-8": False}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [7, 13])
def test_a_save_at_the_end_of_an_epoch_resumes_after_its_evaluation(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """The evaluation draws numbers: without it dropout and the order of rows would go other ways."""

    def stop(self: callbacks.Bar, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert state.global_step < stop_at, "stopped here"

    settings = {"max_steps": 15, "save_steps": 5}
    found = {}
    for name in ("whole", "cut"):
        checked = recipe(name, **settings)
        checked = checked.model_copy(update={"evaluation": checked.evaluation.model_copy(update={"every_steps": None})})
        if name == "cut":
            with monkeypatch.context() as patch:
                patch.setattr(callbacks.Bar, "on_step_begin", stop)
                with pytest.raises(AssertionError, match="stopped here"):
                    train(checked)
        found[name] = train(checked, resume=name == "cut").result
        found[name]["digest"] = digest(path(checked))
    assert found["cut"]["run_info"]["resumed_from"] == f"checkpoint-{stop_at // 5 * 5}"
    assert found["cut"]["digest"] == found["whole"]["digest"]
    rows = {name: result["train_info"]["metrics"] for name, result in found.items()}
    assert [row["step"] for row in rows["cut"]] == [row["step"] for row in rows["whole"]]
    for before, after in zip(rows["whole"], rows["cut"], strict=True):
        # The experts' load is counted from the resume on: its sums round otherwise.
        assert {k: v for k, v in after.items() if "expert" not in k} == {
            k: v for k, v in before.items() if "expert" not in k
        }


@pytest.mark.parametrize("after", ["result", "adapter", "checkpoints"])
def test_an_overwrite_that_is_killed_can_be_done_again(recipe: Callable[..., Recipe], after: str) -> None:
    once = recipe("once", max_steps=2)
    run = path(once)
    (run / "adapter").mkdir(parents=True)
    records.write_text(run / records.RECIPE, recipes.to_yaml(once))
    records.write_json(run / records.RESULT, {"train_info": {"status": "success"}})
    (run / "notes.txt").write_text("mine")

    def work() -> None:
        remove = folder.shutil.rmtree

        def interrupted(place: Path, **settings: Any) -> None:
            if after == "result" or (after == "checkpoints" and place.name == "checkpoints"):
                kill_now()
            remove(place, **settings)
            if after == "adapter":
                kill_now()

        folder.shutil.rmtree = interrupted
        folder.open_folder(once, resume=False, overwrite=True)

    killed(work)
    assert not records.is_finished(run)  # a result whose weights are gone would be believed
    folder.open_folder(once, resume=False, overwrite=False)
    assert {entry.name for entry in run.iterdir()} == {records.RECIPE, "notes.txt"}


def test_a_kill_while_the_first_file_is_written_leaves_a_folder_that_can_be_used(recipe: Callable[..., Recipe]) -> None:
    once = recipe("once")

    def work() -> None:
        records.os.fsync = kill_now
        folder.open_folder(once, resume=False, overwrite=False)

    killed(work)
    assert [entry.suffix for entry in path(once).iterdir()] == [records.PARTIAL]
    folder.open_folder(once, resume=False, overwrite=False)
    assert [entry.name for entry in path(once).iterdir()] == [records.RECIPE]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The rows end in `crashes.json`, which `results/crashes.py` keeps."""
    whole, watch = recipe("whole"), Watch()
    assert finish(lambda: (watch.install(), train(whole))) == ""
    expected, rows = digest(path(whole)), []
    predictions = (path(whole) / records.PREDICTIONS).read_bytes()
    for index, moment in enumerate(draw(seed=0, number=4 * KILLS, watch=watch)):
        cut = recipe(f"cut-{index}")
        hit = kill_at(cut, moment)
        if hit is None:
            continue  # the run was over before its moment came
        place = path(cut)
        left = sorted(str(file.relative_to(place)) for file in place.glob("checkpoints/*")) if place.is_dir() else []
        broken = [name for name in left if checkpoints.fault(place / name) is not None]
        continued = go_on(cut)
        rows.append(
            {
                "kill": len(rows) + 1,
                "aimed_at": moment.phase,
                "part": moment.nth,
                "seconds_into_it": round(moment.delay, 4),
                "hit": hit,
                "half_written_checkpoints": broken,
                "resumed": continued,
                "same_weights": digest(place) == expected,
                "same_predictions": (place / records.PREDICTIONS).read_bytes() == predictions,
            }
        )
        if len(rows) == KILLS:
            break
    records.write_json(tmp_path / "crashes.json", {"kills": len(rows), "weights": expected, "rows": rows})
    assert len(rows) == KILLS
    assert all(row["same_weights"] and row["same_predictions"] for row in rows)
    assert {row["aimed_at"] for row in rows} == {"training", "saving", "evaluating"}
