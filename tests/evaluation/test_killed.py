"""Evaluations killed with signal 9 in the middle: a rerun continues, nothing is scored twice, nothing is trained again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from goat_peft import recipes, records
from goat_peft.errors import UserError
from goat_peft.tasks import generation
from goat_peft.training import evaluate, trackers, train
from goat_peft.training import run as run_module


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TOTAL = 16


@pytest.fixture
def data(generate: dict, tmp_path: Path) -> dict[str, Any]:
    """A recipe with enough test rows, scored one by one, to be killed in the middle."""
    rows = [
        {"instruction": "the film is good" + " very" * (i % 5), "output": "true", "answer": "true"}
        for i in range(TOTAL)
    ]
    generate["task"]["data"]["test"]["path"] = str(write_rows(tmp_path / "test.jsonl", rows))
    generate["task"]["max_new_tokens"] = 3
    generate["training"] |= {"max_steps": 1}
    generate["evaluation"] |= {"batch_size": 1}
    return generate


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def killed_while_scoring(work: Callable[[], Any], kept: Path, after: int = 3) -> list[dict[str, Any]]:
    """Do `work` in a process of its own, kill it -9 once `after` rows are kept, return the rows on disk."""
    process = multiprocessing.get_context("fork").Process(target=_slowly, args=(work,))
    process.start()
    deadline = time.monotonic() + 120
    while lines(kept) <= after:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = [json.loads(line) for line in kept.read_bytes().split(b"\n")[1:-1]]
    assert after <= len(found) < TOTAL
    return found


def _slowly(work: Callable[[], Any]) -> None:
    judge = generation.Generation.judge

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return judge(*args)

    generation.Generation.judge = slow
    work()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the prompts that are generated for from now on."""
    seen: list[int] = []
    generate_texts = generation.generate_texts

    def watched(*args: Any, **settings: Any) -> None:
        seen.extend(settings["indices"])
        generate_texts(*args, **settings)

    monkeypatch.setattr(generation, "generate_texts", watched)
    return seen


def test_a_killed_goat_eval_continues(data: dict, tmp_path: Path, scored: list[int]) -> None:
    run = train(recipes.check(data))
    output = tmp_path / "scored"
    whole = (run.path / records.PREDICTIONS).read_text()
    kept = output / records.SCORING / "score-test.jsonl"
    early = killed_while_scoring(lambda: evaluate(run.path, output=output), kept)
    scored.clear()
    done = evaluate(run.path, output=output, overrides=["evaluation.batch_size=7"])
    assert sorted(scored + [row["index"] for row in early]) == list(range(TOTAL))
    assert (output / records.PREDICTIONS).read_text() == whole
    assert (
        done.result["eval_info"]["metrics"]["exact_match"]
        == run.result["train_info"]["metrics"][-1]["test exact_match"]
    )
    assert not kept.parent.exists()


def test_a_run_killed_while_scoring_continues_without_training(
    data: dict, tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data |= {"method": {"name": "goat"}}
    data["evaluation"] |= {"untrained": True}
    tracked = trackers.AVAILABLE["tensorboard"]()
    data["training"] |= {"report_to": ["tensorboard"] if tracked else []}
    whole = train(recipes.check(data | {"output_dir": str(tmp_path / "whole")}))
    recipe = recipes.check(data)
    folder = Path(recipe.output_dir)
    early = killed_while_scoring(lambda: train(recipe), folder / records.SCORING / "score-test.jsonl")
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds an unfinished run; give --resume to continue it"):
        train(recipe)
    scored.clear()
    monkeypatch.setattr(run_module._Session, "_train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(run_module._Session, "_base_model", lambda *_: pytest.fail("scored the base again"))
    resumed = train(recipe, resume=True)
    assert sorted(scored + [row["index"] for row in early]) == list(range(TOTAL))
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert (folder / records.PREDICTIONS).read_text() == (whole.path / records.PREDICTIONS).read_text()
    for block in ("metrics", "num_trainable_params", "num_total_params"):
        assert resumed.result["train_info"][block] == whole.result["train_info"][block]
    assert json.loads(json.dumps(resumed.result["run_info"]["peft_config"], default=str)).keys()
    assert not (folder / records.TRAINED).exists() and not (folder / records.SCORING).exists()
    if tracked:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert len(events.Scalars("train/loss")) == len(events.Scalars("test/exact_match")) == 1
    usage = records.read_json(folder / records.EXPERT_USAGE)
    assert usage["train"] == records.read_json(whole.path / records.EXPERT_USAGE)["train"]


def test_a_run_killed_while_scoring_the_untrained_model_keeps_its_rows(data: dict, scored: list[int]) -> None:
    data["evaluation"] |= {"untrained": True}
    recipe = recipes.check(data)
    folder = Path(recipe.output_dir)
    early = killed_while_scoring(lambda: train(recipe), folder / records.SCORING / "untrained-test.jsonl")
    scored.clear()
    train(recipe, resume=True)
    assert sorted(scored) == sorted([*range(TOTAL), *(set(range(TOTAL)) - {row["index"] for row in early})])


def test_rows_of_other_weights_are_not_used_again(
    data: dict, tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(recipes.check(data))
    output = tmp_path / "scored"
    with monkeypatch.context() as patch:
        patch.setattr(generation.Generation, "judge", lambda self, index, *_: {"index": index} if index else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(run.path, output=output)
    assert lines(output / records.SCORING / "score-test.jsonl") > 1
    file = run.path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    scored.clear()
    evaluate(run.path, output=output)
    assert sorted(scored) == list(range(TOTAL))
