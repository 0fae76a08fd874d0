"""A disk that takes no more: one clear line, the last good checkpoint stays, and the run goes on once there is room."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft.peft_model
import pytest
from crashing import digest, finish

from goat_peft import recipes, records
from goat_peft.errors import UserError
from goat_peft.recipes import Recipe
from goat_peft.training import checkpoints, evaluate, folder, train


@pytest.fixture
def recipe(classify_recipe: Callable[[Path], dict], tmp_path: Path) -> Callable[..., Recipe]:
    """Four steps, a checkpoint every second one."""

    def build(place: Path | str) -> Recipe:
        data = classify_recipe(tmp_path / place)
        data["method"] = {"name": "goat", "r": 8}
        data["training"] |= {"epochs": None, "max_steps": 4, "save_steps": 2}
        data["evaluation"] |= {"every_steps": 0}
        return recipes.check(data)

    return build


@pytest.fixture(scope="module")
def expected(classify_recipe: Callable[[Path], dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the weights of an undisturbed run."""
    data = classify_recipe(tmp_path_factory.mktemp("whole") / "run")
    data["method"] = {"name": "goat", "r": 8}
    data["training"] |= {"epochs": None, "max_steps": 4, "save_steps": 2}
    data["evaluation"] |= {"every_steps": 0}
    return digest(train(recipes.check(data)).path)


def test_no_space_while_a_checkpoint_is_written(
    recipe: Callable[..., Recipe], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = recipe("full")
    run = Path(full.output_dir)
    save, calls = peft.peft_model.safe_save_file, []

    def out_of_space(tensors: Any, file: str, **settings: Any) -> None:
        calls.append(file)
        if len(calls) > 1:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, file, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(peft.peft_model, "safe_save_file", out_of_space)
        with pytest.raises(UserError) as caught:
            train(full)
    message = str(caught.value)
    assert message.startswith(f"output_dir={run}: the disk is full") and "\n" not in message
    assert message.endswith("checkpoint-2 is whole; free some space, then continue with --resume")
    assert [place.name for place in checkpoints.newest_first(run / "checkpoints")] == ["checkpoint-2"]
    assert train(full, resume=True).result["run_info"]["resumed_from"] == "checkpoint-2"
    assert digest(run) == expected


@pytest.mark.slow
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_file_that_may_not_grow(recipe: Callable[..., Recipe], expected: str, file: str) -> None:
    """The kernel's own refusal, in the writers of safetensors and of torch."""
    full = recipe(f"full-{file}")
    run = Path(full.output_dir)
    sizes: dict[str, int] = {}

    def work() -> None:
        seal = checkpoints.seal

        def look(place: Path) -> None:
            seal(place)
            sizes.update({entry.name: entry.stat().st_size for entry in place.iterdir()})
            resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[file] - 100, resource.RLIM_INFINITY))

        checkpoints.seal = look
        train(full)

    said = finish(work)
    assert said.startswith(f"output_dir={run}: the disk is full, or a limit on the size of files is reached")
    assert said.endswith("checkpoint-2 is whole; free some space, then continue with --resume")
    train(full, resume=True)
    assert digest(run) == expected


@pytest.mark.slow
def test_no_space_for_the_rows_of_an_evaluation(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = train(recipe("run")).path

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        evaluate(run, output=tmp_path / "scored")

    assert "output: the disk is full" in finish(work)
    assert evaluate(run, output=tmp_path / "scored").result["eval_info"]["samples"] == 16


def test_trained_weights_are_published_after_a_kill_between_saving_and_scoring(recipe: Callable[..., Recipe]) -> None:
    once = recipe("once")
    found, _ = folder.open_folder(once, resume=False, overwrite=False)
    with found.saving(as_adapter=True) as place:
        place.mkdir()
        (place / "adapter_model.safetensors").write_text("weights")
    assert not found.adapter.exists()
    records.write_json(found.trained, {})
    folder.open_folder(once, resume=True, overwrite=False)
    assert [entry.name for entry in found.adapter.iterdir()] == ["adapter_model.safetensors"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_file_system_that_is_full(recipe: Callable[..., Recipe], expected: str, small_disk: Path) -> None:
    full = recipe(small_disk / "run")
    filler = small_disk / "filler"

    def work() -> None:
        seal = checkpoints.seal

        def fill(place: Path) -> None:
            seal(place)
            with filler.open("wb", buffering=0) as file:
                while True:
                    try:
                        if not file.write(bytes(4096)):
                            break
                    except OSError:
                        break

        checkpoints.seal = fill
        train(full)

    said = finish(work)
    assert "the disk is full" in said and "checkpoint-2 is whole" in said
    filler.unlink()
    train(full, resume=True)
    assert digest(Path(full.output_dir)) == expected
