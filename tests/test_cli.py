"""The command `goat`: what each verb prints, and one line and an exit code for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForSequenceClassification

import goat_peft
from goat_peft import recipes, records
from goat_peft.cli import main


@pytest.fixture
def recipe_file(tmp_path: Path, classify: dict) -> str:
    """The tiny classification recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(classify), encoding="utf-8")
    return str(path)


def goat(*arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error, which must be an error and no traceback."""
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(found) == 1
    return found[0]


def test_train_eval_and_inspect(recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "elsewhere"
    assert goat("train", recipe_file, "method=goat", "training.epochs=4", f"output_dir={run}") == 0
    said = capsys.readouterr().out
    assert "test accuracy" in said and str(run) in said
    accuracy = json.loads((run / records.RESULT).read_text())["train_info"]["metrics"][-1]["test accuracy"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert goat("eval", str(run), "--output", str(tmp_path / "scored")) == 0
    assert f"{100 * accuracy:.1f} %" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert goat("inspect", str(run), "--layers") == 0
    said = capsys.readouterr().out
    assert "GOAT adapter" in said and "goat_router" in said and "num_experts 8" in said
    assert "scale s over" in said and "64 x 32" in said


def test_scales_and_usage_of_inspect_are_the_adapter_s(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "scaled"
    method = "method={name: goat, scaling: 3.5, target_modules: [query, value]}"
    assert goat("train", recipe_file, method, "training.max_steps=1", "training.epochs=null", f"output_dir={run}") == 0
    capsys.readouterr()
    assert goat("inspect", str(run / "adapter")) == 0
    said = capsys.readouterr().out
    assert "scale s over 4 layers: 3.5 to 3.5" in said
    assert "expert usage: shares from" in said


def test_recipes_list_show_copy_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert goat("recipes", "list") == 0
    listed = capsys.readouterr().out
    assert goat("recipes", "check") == 0
    checked = capsys.readouterr().out
    for name in recipes.shipped():
        assert name in listed and f"{name}: ok" in checked
    assert goat("recipes", "show", "demo-reviews") == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "demo-reviews"
    assert goat("recipes", "show", "demo-reviews", "method=lora") == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"]["name"] == "lora"
    assert goat("recipes", "copy", "demo-reviews") == 0
    assert recipes.load("demo-reviews.yaml") == recipes.load("demo-reviews")
    capsys.readouterr()
    assert goat("recipes", "copy", "demo-reviews") == 2
    assert "destination=demo-reviews.yaml: exists" in one_error(capsys)


def test_check_reports_a_bad_file(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(recipe_file).read_text().replace("batch_size: 8", "batch_sise: 8")
    Path(recipe_file).write_text(text)
    assert goat("recipes", "check", recipe_file) == 2
    assert "training.batch_sise=8: unknown key; did you mean batch_size" in one_error(capsys)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.epoch=3"], ["training.epoch=3: unknown key", "epochs"]),
        (["training.epochs=many"], ["training.epochs=many", "number"]),
        (["method={name: goat, r: 12}"], ["method.r=12", "multiple of num_experts=8"]),
        (["method={name: goat, top_k: 99}"], ["method.top_k=99", "from 1 to num_experts=8"]),
        (["task.data.train.path=/absent/rows.jsonl"], ["task.data.train.path=/absent/rows.jsonl", "no such file"]),
        (["model=/absent/model"], ["model.name=/absent/model", "no such file"]),
        (["method.target_modules=[q_proj]"], ["method.target_modules=q_proj", "query"]),
        (["method={name: goat, target_modules: [q_proj]}"], ["method.target_modules=q_proj", "query"]),
        (["method={name: goat, r: 64, num_experts: 8}"], ["method.r=64", "smaller r"]),
        (["task.text=txt"], ["task.text=txt", "did you mean text"]),
        (["task.labels=[rotten, other]"], ["task.labels", "label='fresh'"]),
        (["task.data.cut.test=60"], ["task.data.cut", "ask for fewer"]),
        (["task.data.cut=null"], ["evaluation.split=test", "no such split"]),
        (["training.epochs"], ["training.epochs: not an override", "key=value"]),
    ],
)
def test_a_recipe_that_cannot_work_is_one_line_and_exit_2(
    recipe_file: str, capsys: pytest.CaptureFixture[str], overrides: list[str], said: list[str]
) -> None:
    assert goat("train", recipe_file, *overrides) == 2
    line = one_error(capsys)
    for part in said:
        assert part in line


def test_a_missing_recipe_names_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("train", "demo-revews") == 2
    assert "did you mean demo-reviews" in one_error(capsys)


@pytest.fixture
def finished(recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A finished GOAT run."""
    run = tmp_path / "finished"
    settings = ["method=goat", "training.max_steps=1", "training.epochs=null", f"output_dir={run}"]
    assert goat("train", recipe_file, *settings) == 0
    capsys.readouterr()
    return run


@pytest.mark.parametrize("damage", ["truncated", "flipped header", "missing", "empty", "config", "other shape"])
@pytest.mark.parametrize("verb", ["eval", "inspect"])
def test_a_corrupt_adapter_is_one_line_and_exit_2(
    finished: Path, capsys: pytest.CaptureFixture[str], damage: str, verb: str
) -> None:
    weights = finished / "adapter" / "adapter_model.safetensors"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flipped header":
        weights.write_bytes(b"\xff" * 16 + content[16:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "config":
        (finished / "adapter" / "adapter_config.json").write_text('{"peft_type": ')
    else:
        config = records.read_json(finished / "adapter" / "adapter_config.json")
        records.write_json(finished / "adapter" / "adapter_config.json", config | {"r": 16})
    code = goat(verb, str(finished))
    if damage == "other shape" and verb == "inspect":
        assert code == 0  # looked at without a model, the tensors are whole
    else:
        assert code == 2
        assert "adapter=" in one_error(capsys)


def test_an_adapter_on_another_base_is_refused(
    finished: Path, tiny_bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other-base"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    model.save_pretrained(other)
    for file in tiny_bert_dir.glob("tokenizer*"):
        (other / file.name).write_bytes(file.read_bytes())
    assert goat("eval", str(finished), f"model={other}") == 2
    assert "trained on another base" in one_error(capsys)


@pytest.mark.parametrize("verb", ["eval", "inspect"])
def test_a_folder_that_is_no_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert goat(verb, str(tmp_path)) == 2
    assert "give the folder" in one_error(capsys)


def test_a_finished_run_needs_overwrite(finished: Path, recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["method=goat", "training.max_steps=1", "training.epochs=null", f"output_dir={finished}"]
    assert goat("train", recipe_file, *settings) == 2
    assert "--overwrite" in one_error(capsys)
    assert goat("train", recipe_file, *settings, "--overwrite") == 0


def test_ctrl_c_exits_130_and_says_how_to_resume(recipe_file: str, tmp_path: Path) -> None:
    """In a process of its own, stopped by the signal that a terminal sends."""
    run = tmp_path / "stopped"
    overrides = ["training.epochs=400", "training.save_steps=5", f"output_dir={run}"]
    code = "from goat_peft.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", recipe_file, *overrides],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/checkpoint-*/complete")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"goat train {recipe_file}" in errors and "--resume" in errors


def test_training_rows_that_are_cut_or_dropped_are_said_and_kept(
    tmp_path: Path, generate: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"instruction": "the film is" + " very" * (8 * (i % 2)), "output": "good", "answer": "good"} for i in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    generate["task"]["data"] = {"train": {"path": str(data)}, "test": {"path": str(data)}}
    generate["task"] |= {"prompt": "{instruction}", "max_length": 8, "max_new_tokens": 1}
    generate["training"] = {"learning_rate": 0.01, "max_steps": 1, "batch_size": 4}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(generate), encoding="utf-8")
    assert goat("train", str(file)) == 0
    said = capsys.readouterr().out
    assert "task.max_length=8: 0 of 4 training rows were cut, 4 more were dropped because" in said
    result = json.loads((Path(generate["output_dir"]) / "result.json").read_text(encoding="utf-8"))
    assert result["train_info"]["rows"] == {"train": 4, "cut": 0, "dropped": 4}


def test_version_names_the_package_and_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert goat("--version") == 0
    said = capsys.readouterr().out.split()
    assert said[:2] == ["goat-peft", goat_peft.__version__]
    assert torch.__version__ in " ".join(said) and transformers.__version__ in " ".join(said)
