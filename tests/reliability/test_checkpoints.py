"""Which checkpoints are believed: damaged lists, marks of version 0.1.0, recipes from before a key existed, weights that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import TrainerControl, TrainerState

from goat_peft import recipes, records
from goat_peft.compare.trials import Trial
from goat_peft.errors import UserError
from goat_peft.recipes import Recipe
from goat_peft.training import checkpoints
from goat_peft.training.folder import RunFolder, open_folder

NEW_KEYS = {"model": ["quantize"], "training": ["fp16", "rate_factors", "rates", "cuda_graphs"]}  # since version 0.1.0


@pytest.fixture
def recipe(classify_recipe: Callable[[Path], dict], tmp_path: Path) -> Recipe:
    return recipes.check(classify_recipe(tmp_path / "run"))


def checkpoint(recipe: Recipe, step: int = 5) -> Path:
    """An unfinished run with one whole checkpoint."""
    folder = RunFolder(Path(str(recipe.output_dir)))
    if not folder.path.exists():
        open_folder(recipe, False, False)
    place = folder.checkpoints / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text("{}")
    (place / "optimizer.pt").write_text("moments")
    checkpoints.seal(place)
    return place


def without_new_keys(recipe: Recipe) -> str:
    """The recipe as a release without those keys wrote it."""
    data = yaml.safe_load(recipes.to_yaml(recipe))
    for block, names in NEW_KEYS.items():
        for name in names:
            del data[block][name]
    return yaml.safe_dump(data, sort_keys=False)


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", '{"optimizer.pt": 1}', '{"optimizer.pt": {"bytfs": 1, "sha256": "a"}}', '{"../x": {"bytes": 1, "sha256": "a"}}',
        '{"/etc/passwd": {"bytes": 1, "sha256": "a"}}', '{"o\\u0000": {"bytes": 1, "sha256": "a"}}', '{"": {"bytes": 1, "sha256": "a"}}',
    ],
)  # fmt: skip
def test_a_damaged_list_is_a_fault_and_no_traceback(recipe: Recipe, content: str) -> None:
    place = checkpoint(recipe)
    assert checkpoints.fault(place) is None
    (place / checkpoints.COMPLETE).write_text(content)
    assert checkpoints.fault(place) == "its list of files is damaged"


def test_a_run_whose_only_checkpoint_is_damaged_is_kept_and_the_damage_told(recipe: Recipe) -> None:
    place = checkpoint(recipe)
    whole = (place / "optimizer.pt").read_bytes()
    (place / "optimizer.pt").write_text("moment?")
    with pytest.raises(
        UserError, match=r"checkpoint-5: optimizer\.pt is not as it was written.*--resume, or give --overwrite"
    ):
        open_folder(recipe, resume=False, overwrite=False)
    with pytest.raises(
        UserError, match=r"no complete checkpoint .*checkpoint-5: optimizer\.pt is not as it was written.*--overwrite"
    ):
        open_folder(recipe, resume=True, overwrite=False)
    (place / "optimizer.pt").write_bytes(whole)  # brought back from a copy
    assert open_folder(recipe, resume=True, overwrite=False)[1] == place
    (place / checkpoints.COMPLETE).write_text("[]")
    open_folder(recipe, resume=False, overwrite=True)
    assert not place.exists()


def test_a_checkpoint_that_was_never_whole_is_in_nobody_s_way(recipe: Recipe) -> None:
    place = checkpoint(recipe)
    (place / checkpoints.COMPLETE).unlink()
    with pytest.raises(UserError, match="checkpoint-5: it was not written to its end.*start without --resume"):
        open_folder(recipe, resume=True, overwrite=False)
    open_folder(recipe, resume=False, overwrite=False)
    assert not place.exists()


def test_a_run_of_version_0_1_0_is_resumed(recipe: Recipe) -> None:
    """Its marks are empty, and its recipe lacks the keys that came later."""
    place = checkpoint(recipe)
    (place / checkpoints.COMPLETE).write_text("")
    stored = RunFolder(Path(str(recipe.output_dir))).recipe
    stored.write_text(without_new_keys(recipe))
    assert open_folder(recipe, resume=True, overwrite=False) == (RunFolder(Path(str(recipe.output_dir))), place)
    for changed in ({"quantize": "nf4"}, {"dtype": "bfloat16"}):
        other = recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})
        with pytest.raises(UserError, match="started with another recipe"):
            open_folder(other, resume=True, overwrite=False)
    (place / "trainer_state.json").unlink()
    assert checkpoints.fault(place) == "trainer_state.json is missing"


def test_a_comparison_goes_on_from_runs_of_version_0_1_0(recipe: Recipe) -> None:
    run = Path(str(recipe.output_dir))
    run.mkdir()
    records.write_json(run / records.RESULT, {"train_info": {"status": "success"}})
    (run / records.RECIPE).write_text(without_new_keys(recipe))

    def trial(of: Recipe) -> Trial:
        return Trial("task", "lora", 1e-3, 0, "test", "accuracy", of)

    assert trial(recipe).finished()
    with pytest.raises(UserError, match="other settings"):
        trial(recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 7})})).finished()


def save(folder: Path, step: int, weight: float) -> None:
    """What the trainer does to save: write, then tell its callbacks."""
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "adapter.json").write_text(json.dumps(weight))
    model = nn.ParameterList([nn.Parameter(torch.tensor([1.0, weight])), nn.Parameter(torch.ones(2))])
    args: Any = SimpleNamespace(output_dir=str(folder), learning_rate=0.5, max_grad_norm=1.0)
    state = TrainerState(global_step=step, is_world_process_zero=True)
    checkpoints.WholeCheckpoints().on_save(args, state, TrainerControl(), model=model)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_push_out_none_that_are(tmp_path: Path, weight: float) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, 0.5)
    with pytest.raises(UserError, match=r"learning_rate=0\.5: the trained weights are not finite at step 4; try a sm"):
        save(tmp_path, 4, weight)
    kept = checkpoints.newest_first(tmp_path)
    assert [place.name for place in kept] == ["checkpoint-3", "checkpoint-2"]
    assert [checkpoints.fault(place) for place in kept] == [None, None]


def test_only_whole_checkpoints_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, 0.5)
    (tmp_path / "checkpoint-3").mkdir()  # a save that did not come to its end
    save(tmp_path, 4, 0.5)
    whole = [place.name for place in checkpoints.newest_first(tmp_path) if checkpoints.fault(place) is None]
    assert whole == ["checkpoint-4", "checkpoint-2"]
