"""Runs: what they write, that they learn, resume exactly, stop cleanly, and scale their gradients rightly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import goat_peft
from goat_peft import recipes, records
from goat_peft.errors import UserError
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import bind
from goat_peft.training import Interrupted, evaluate, train
from goat_peft.training import run as run_module
from goat_peft.training.folder import RunFolder
from goat_peft.training.loading import load_base, load_processor, load_trained

ALL_METHODS = ("goat", "lora", "full")


def checked(data: dict[str, Any], **changes: Any) -> recipes.Recipe:
    """Check a recipe given as plain data, with dotted changes."""
    data = json.loads(json.dumps(data))
    for key, value in changes.items():
        recipes.apply_override(data, f"{key.replace('__', '.')}={json.dumps(value)}")
    return recipes.check(data)


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in a run's adapter or model folder."""
    from safetensors.torch import load_file

    return {k: v for file in sorted(folder.glob("*/*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_run_learns_and_writes_its_folder(classify: dict, method: str) -> None:
    recipe = checked(classify, method=method, evaluation__untrained=True, training__epochs=6)
    run = train(recipe)
    rows = run.result["train_info"]["metrics"]
    assert rows[0]["untrained test accuracy"] < 0.75
    assert rows[-1]["test accuracy"] > 0.9
    assert {"adapter", "model"} & {p.name for p in run.path.iterdir()} == {"model" if method == "full" else "adapter"}
    for name in (records.RECIPE, records.RESULT, records.PREDICTIONS, records.CURVE_PICTURE):
        assert (run.path / name).stat().st_size > 0
    assert recipes.load(str(run.path / records.RECIPE)) == recipe
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("method", ALL_METHODS)
def test_eval_of_a_run_gives_the_run_s_own_figures(classify: dict, method: str, tmp_path: Path) -> None:
    run = train(checked(classify, method=method))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    scored = evaluate(run.path, output=tmp_path / "scored")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    last = run.result["train_info"]["metrics"][-1]
    assert {f"test {k}": v for k, v in scored.result["eval_info"]["metrics"].items()}.items() <= last.items()
    assert (scored.path / records.PREDICTIONS).read_text() == (run.path / records.PREDICTIONS).read_text()


def test_result_has_the_three_blocks(classify: dict) -> None:
    result = json.loads((train(checked(classify)).path / records.RESULT).read_text())
    assert set(result) == {"run_info", "train_info", "meta_info"}
    assert {"created_at", "total_time", "experiment_name", "train_config", "peft_config", "error_msg"} <= set(
        result["run_info"]
    )
    info = result["train_info"]
    assert info["status"] == "success" and info["file_size"] > 0
    assert 0 < info["num_trainable_params"] < info["num_total_params"]
    assert [row["step"] for row in info["metrics"]] == sorted(row["step"] for row in info["metrics"])
    assert any("valid accuracy" in row for row in info["metrics"])
    assert {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"} <= set(result["meta_info"])
    packages = result["meta_info"]["package_info"]
    assert packages["torch-version"] == torch.__version__ and packages["goat-peft-version"] == goat_peft.__version__
    source = Path(goat_peft.__file__).parents[2]
    told = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    commit = told.stdout.strip() if (source / ".git").exists() else None
    assert (packages["goat-peft-commit-hash"] or "").removesuffix("-dirty") == (commit or "")


def test_goat_logs_balance_loss_and_expert_usage(classify: dict) -> None:
    run = train(checked(classify, method="goat", training__max_steps=4, training__epochs=None))
    steps = [row for row in run.result["train_info"]["metrics"] if "train loss" in row and "grad norm" in row]
    assert len(steps) == 4
    assert all(1.0 <= row["balance_loss"] < 4.0 for row in steps)
    usage = json.loads((run.path / records.EXPERT_USAGE).read_text())
    assert len(usage["test"]) == len(usage["train"]) > 0
    for row in usage["test"]:
        assert sum(row["share"]) == pytest.approx(1.0, abs=1e-4)
    assert (run.path / records.EXPERTS_PICTURE).stat().st_size > 0


def test_lora_runs_have_no_expert_files(classify: dict) -> None:
    run = train(checked(classify, training__max_steps=1, training__epochs=None))
    assert not (run.path / records.EXPERT_USAGE).exists()


def test_generation_learns_through_sft(generate: dict, tmp_path: Path) -> None:
    run = train(checked(generate, method="goat", training__learning_rate=0.01, training__max_steps=40))
    last = run.result["train_info"]["metrics"][-1]
    assert (last["test exact_match"], last["test failed_extractions"]) == (1.0, 0)
    scored = evaluate(run.path, output=tmp_path / "scored")
    assert scored.result["eval_info"]["metrics"]["exact_match"] == last["test exact_match"]


def test_prompt_is_masked_and_the_target_ends_with_eos(generate: dict) -> None:
    recipe = checked(generate)
    task = bind(recipe.task)
    tokenizer = load_processor(recipe.model, task)
    splits = task.load()
    arguments = run_module.training_arguments(recipe, RunFolder(Path(recipe.output_dir)), False)
    model = load_base(recipe.model, task, tokenizer)
    trainer = task.trainer(model, arguments, task.prepare(splits.train, tokenizer, "train"), None, tokenizer, [])
    row = trainer.train_dataset[0]
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert learned[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(learned[:-1])
    assert text in {"the correct answer is false", "the correct answer is true"}


@pytest.mark.parametrize("family", ["classify", "generate"])
def test_the_recipe_decides_where_the_trainers_defaults_differ(request: pytest.FixtureRequest, family: str) -> None:
    """TRL turns checkpointing and bfloat16 on unless told otherwise."""
    recipe = checked(request.getfixturevalue(family))
    task = bind(recipe.task)
    tokenizer = load_processor(recipe.model, task)
    model = load_base(recipe.model, task, tokenizer)
    arguments = run_module.training_arguments(recipe, RunFolder(Path(recipe.output_dir)), False)
    rows = task.prepare(task.load().train, tokenizer, "train")
    settings = task.trainer(model, arguments, rows, None, tokenizer, []).args
    assert (settings.gradient_checkpointing, settings.bf16, settings.fp16) == (False, False, False)
    assert settings.learning_rate == recipe.training.learning_rate
    assert settings.weight_decay == recipe.training.weight_decay
    assert settings.logging_steps == recipe.training.logging_steps


def test_failed_extractions_are_counted_and_wrong(generate: dict) -> None:
    recipe = checked(generate, training__max_steps=1, task__extract="neverwritten")
    last = train(recipe).result["train_info"]["metrics"][-1]
    assert (last["test exact_match"], last["test failed_extractions"]) == (0.0, last["test samples"])


def test_left_padding_gives_the_same_text_for_any_batch_size(generate: dict, tmp_path: Path) -> None:
    run = train(checked(generate, training__max_steps=15)).path
    texts = [
        (
            evaluate(run, output=tmp_path / str(size), overrides=[f"evaluation.batch_size={size}"]).path
            / records.PREDICTIONS
        )
        for size in (1, 7)
    ]
    assert texts[0].read_text() == texts[1].read_text()


class _FirstGradient(TrainerCallback):
    """Keeps the gradients of the first optimiser step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_gradient(data: dict[str, Any], batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Gradients of one optimiser step over the first 32 rows, in the data's order and without clipping."""
    recipe = checked(
        data,
        training__batch_size=batch,
        training__gradient_accumulation_steps=accumulation,
        training__max_grad_norm=0,
        training__max_steps=1,
        training__epochs=None,
    )
    task = bind(recipe.task)
    tokenizer = load_processor(recipe.model, task)
    torch.manual_seed(0)
    model = load_base(recipe.model, task, tokenizer)
    model = METHODS[recipe.method.name].build(model, recipe.method, task.peft_type)
    arguments = run_module.training_arguments(recipe, RunFolder(Path(recipe.output_dir)), False)
    arguments["train_sampling_strategy"] = "sequential"
    rows = task.prepare(task.load().train.select(range(32)), tokenizer, "train")
    watch = _FirstGradient()
    task.trainer(model, arguments, rows, None, tokenizer, [watch]).train()
    return watch.gradients


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["classify", "generate"])
def test_four_accumulated_micro_batches_give_the_gradient_of_one_batch(
    request: pytest.FixtureRequest, family: str, method: str
) -> None:
    data = request.getfixturevalue(family) | {"method": {"name": method}}
    whole, parts = first_gradient(data, 32, 1), first_gradient(data, 8, 4)
    assert whole.keys() == parts.keys() and whole
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


class _Kill(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("method", ALL_METHODS)
def test_resume_reaches_the_weights_of_an_undisturbed_run(
    classify: dict, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    classify["training"] |= {"save_steps": 2}
    whole = train(checked(classify, method=method, output_dir=str(tmp_path / "whole")))
    recipe = checked(classify, method=method, output_dir=str(tmp_path / "cut"))

    class Crash(run_module.Divergence):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise _Kill

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Divergence", Crash)
        with pytest.raises(_Kill):
            train(recipe)
    folder = RunFolder(tmp_path / "cut")
    assert folder.last_checkpoint().name == "checkpoint-4"
    # A checkpoint that was cut short is not taken, however new it is.
    (folder.checkpoints / "checkpoint-6").mkdir()
    with pytest.raises(UserError, match="--resume to continue it or --overwrite"):
        train(recipe)
    with pytest.raises(UserError, match="started with another recipe"):
        train(checked(classify, method=method, output_dir=str(tmp_path / "cut"), training__seed=1), resume=True)
    resumed = train(recipe, resume=True)
    assert resumed.result["run_info"]["resumed_from"] == "checkpoint-4"
    expected, found = saved_tensors(whole.path), saved_tensors(resumed.path)
    assert expected.keys() == found.keys() and expected
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_ctrl_c_saves_a_whole_checkpoint_and_the_run_resumes(classify: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = checked(classify)

    class PressCtrlC(run_module.Divergence):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Divergence", PressCtrlC)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            train(recipe)
    assert signal.getsignal(signal.SIGINT) is before
    assert RunFolder(Path(recipe.output_dir)).last_checkpoint().name == "checkpoint-3"
    assert train(recipe, resume=True).result["train_info"]["status"] == "success"


def test_a_finished_run_is_replaced_only_when_asked(classify: dict, tmp_path: Path) -> None:
    recipe = checked(classify, training__max_steps=1, training__epochs=None)
    path = train(recipe).path
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds a finished run; give --overwrite"):
        train(recipe)
    with pytest.raises(UserError, match="the run is finished"):
        train(recipe, resume=True)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    typos = {"model__name": str(tmp_path / "typo"), "task__data__train__path": str(tmp_path / "typo.jsonl")}
    for field, value in typos.items():
        with pytest.raises(UserError, match="typo"):
            train(checked(classify, training__max_steps=1, training__epochs=None, **{field: value}), overwrite=True)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    train(recipe, overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="files that are not a run's"):
        train(checked(classify, output_dir=str(foreign)))


def test_same_seed_same_weights(classify: dict, tmp_path: Path) -> None:
    runs = [train(checked(classify, method="goat", output_dir=str(tmp_path / name))) for name in "ab"]
    first, second = (saved_tensors(run.path) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_method_starts_from_the_same_untrained_model(classify: dict, tmp_path: Path) -> None:
    found = set()
    for method in ALL_METHODS:
        recipe = checked(
            classify, method=method, evaluation__untrained=True, output_dir=str(tmp_path / method), training__epochs=1
        )
        found.add(train(recipe).result["train_info"]["metrics"][0]["untrained test accuracy"])
    assert len(found) == 1


def test_parameters_with_a_rate_of_their_own(classify: dict) -> None:
    run = train(checked(classify, training__rates={"lora_": 1e-12}))
    found = {name: tensor.abs().max().item() for name, tensor in saved_tensors(run.path).items()}
    assert max(value for name, value in found.items() if "lora_B" in name) < 1e-9  # B starts at zero
    assert run.result["train_info"]["metrics"][-1]["step"] > 0


def test_a_loss_that_is_no_number_stops_the_run_with_the_step(classify: dict) -> None:
    with pytest.raises(UserError, match=r"training.learning_rate=1e\+30: the loss is .* at step \d"):
        train(checked(classify, method="full", training__learning_rate=1e30, training__max_grad_norm=0))


def test_result_is_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    records.write_json(path, {"a": 1})

    class Breaks:
        def __str__(self) -> str:
            raise RuntimeError("full disk")

    with pytest.raises(RuntimeError):
        records.write_json(path, {"a": Breaks()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_gradient_checkpointing_gives_the_same_weights(classify: dict, tmp_path: Path) -> None:
    runs = [
        train(
            checked(
                classify,
                method="goat",
                training__epochs=1,
                training__gradient_checkpointing=on,
                output_dir=str(tmp_path / str(on)),
            )
        )
        for on in (False, True)
    ]
    first, second = (saved_tensors(run.path) for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_trained_model_is_loaded_in_full(classify: dict) -> None:
    recipe = checked(classify, method="full")
    run = train(recipe)
    task = bind(recipe.task)
    tokenizer = load_processor(recipe.model, task)
    loaded = load_trained(recipe, run.path, task, tokenizer).state_dict()
    for name, tensor in saved_tensors(run.path).items():
        assert torch.equal(loaded[name], tensor), name
