"""`goat eval`: several tests at once, on a run, on other methods' adapters, on a bare base; figures and files as promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft import recipes, records
from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.tasks import decoding, generation
from goat_peft.training import evaluate, train


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEMPLATES = {"type": "generation", "prompt": "{instruction} ### Response : ", "answer": "{answer}", "max_new_tokens": 6}


@pytest.fixture
def tasks(questions: Path, tmp_path: Path) -> list[str]:
    """Two task files: one whose answers are words, one whose extraction never finds any."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    places = []
    for name, extract, part in (("words", "true|false|[a-z]+", rows[:6]), ("never", "neverwritten", rows[6:16])):
        data = {"test": {"path": str(write_rows(tmp_path / f"{name}.jsonl", part))}}
        places.append(tmp_path / f"{name}.yaml")
        places[-1].write_text(json.dumps({**TEMPLATES, "data": data, "extract": extract}))
    return [str(place) for place in places]


@pytest.fixture
def base(lively_llama: Callable[[int], Path]) -> Path:
    """A tiny language model whose texts depend on its prompts."""
    return lively_llama(1)


def predictions(folder: Path, test: str) -> list[dict[str, Any]]:
    lines = (folder / records.TESTS / test / records.PREDICTIONS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_recipe_s_tests_are_scored_after_training_under_their_names(
    generate: dict, tasks: list[str], tmp_path: Path
) -> None:
    generate["evaluation"] |= {"tests": tasks, "untrained": True}
    generate["training"] |= {"max_steps": 2}
    del generate["task"]["data"]["test"]
    run = train(recipes.check(generate | {"method": {"name": "goat"}}))
    first, last = run.result["train_info"]["metrics"][0], run.result["train_info"]["metrics"][-1]
    share = sum(row["correct"] for row in predictions(run.path, "words")) / 6
    assert last["test words exact_match"] == share and last["test never exact_match"] == 0.0
    assert last["test average"] == share / 2
    assert (last["test never failed_extractions"], last["test samples"]) == (10, 16)
    assert {"untrained test words exact_match", "untrained test average"} <= set(first)
    assert [row["index"] for row in predictions(run.path, "never")] == list(range(10))
    assert not (run.path / records.PREDICTIONS).exists() and not (run.path / records.SCORING).exists()
    again = evaluate(run.path, output=tmp_path / "again")
    assert again.result["eval_info"]["metrics"]["average"] == share / 2
    one = evaluate(run.path, tasks=[tasks[0]], output=tmp_path / "one")
    assert one.result["eval_info"]["metrics"] == {"words exact_match": share}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules="all-linear", init_lora_weights=False),
        IA3Config(
            target_modules=["q_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
        PromptTuningConfig(num_virtual_tokens=3),
    ],
    ids=["lora", "ia3", "prompt tuning"],
)
def test_adapters_of_other_methods_are_scored_on_the_base_they_name(
    base: Path, tasks: list[str], tmp_path: Path, config: Any
) -> None:
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter-of-mine")
    files = sorted((tmp_path / "adapter-of-mine").iterdir())
    scored = evaluate(tmp_path / "adapter-of-mine", tasks=tasks, output=tmp_path / "scored")
    assert sorted((tmp_path / "adapter-of-mine").iterdir()) == files
    found: dict[int, str] = {}
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    decoding.generate_texts(
        model,
        AutoTokenizer.from_pretrained(base),
        [TEMPLATES["prompt"].format(**row) for row in rows],
        max_new_tokens=6,
        batch_size=1,
        done=lambda i, t: found.update(zip(i, t, strict=True)),
    )
    texts = [row["text"] for row in predictions(scored.path, "words")]
    assert texts == [found[index] for index in range(6)]
    bare = evaluate(base, tasks=tasks, output=tmp_path / "bare")
    assert texts != [row["text"] for row in predictions(bare.path, "words")]
    assert (scored.result["run_info"]["kind"], bare.result["run_info"]["kind"]) == ("adapter", "base")


def test_a_classifier_s_adapter_needs_a_recipe_for_its_head(classify: dict, tmp_path: Path) -> None:
    run = train(recipes.check(classify))
    file = tmp_path / "own.yaml"
    file.write_text(recipes.to_yaml(recipes.check(classify)))
    validation = evaluate(run.path, overrides=["evaluation.split=validation"], output=tmp_path / "validation")
    assert validation.result["eval_info"]["samples"] == 8
    with pytest.raises(UserError, match="nothing says what to score it on; give --task NAME"):
        evaluate(run.path / "adapter")
    scored = evaluate(run.path / "adapter", recipe=str(file), output=tmp_path / "scored")
    assert (scored.path / records.PREDICTIONS).read_text() == (run.path / records.PREDICTIONS).read_text()


def test_the_command_prints_a_table_and_names_its_folder(
    base: Path, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", str(base), "--task", tasks[0], "--task", tasks[1], "evaluation.batch_size=3"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert "words exact match" in said and "never failed extractions" in said and "average" in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("eval-base-") and str(folder.relative_to(tmp_path)) in said
    result = records.read_json(folder / records.EVALUATION)
    assert set(result) == {"run_info", "eval_info", "meta_info"} and result["eval_info"]["samples"] == 16
    # The same again is read, not scored; anything else lands beside it.
    monkeypatch.setattr(generation, "generate_texts", lambda *a, **k: pytest.fail("scored again"))
    with pytest.raises(SystemExit):
        main(command)
    assert "was scored before" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([*command, "task.max_new_tokens=2"])
    assert len(list((tmp_path / "runs").iterdir())) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*command, "task.max_new_tokens=3", "--output", str(folder)])
    assert stop.value.code == 2
    assert "holds an evaluation of something else; give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "tasks", "overrides", "said"),
    [
        ("runs/nothing", ["gsm8k"], [], "target=runs/nothing: no such folder"),
        ("BASE", ["gsm9k"], [], "did you mean gsm8k"),
        ("BASE", [], [], "give --task NAME"),
        ("BASE", ["gsm8k"], ["method.r=3"], "method.r=3: means nothing without a recipe"),
        ("BASE", ["gsm8k", "gsm8k"], ["task.data.folder=/"], "--task gsm8k: is named twice"),
        ("BASE", ["gsm8k"], ["task.nonsense=1"], "task.nonsense=1: unknown key"),
        ("BASE", ["gsm8k"], ["evaluation.batch_size=0"], "batch_size=0"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    tiny_llama_dir: Path, target: str, tasks: list[str], overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError) as error:
        evaluate(target.replace("BASE", str(tiny_llama_dir)), tasks=tasks, overrides=overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_test_for_another_kind_of_model_is_refused(classify: dict, tasks: list[str]) -> None:
    classify["evaluation"] |= {"tests": [tasks[0]]}
    with pytest.raises(UserError, match="evaluation.tests=words: is a generation task, for another kind of model"):
        train(recipes.check(classify))
