"""Every shipped recipe end to end: a tiny model, a few rows in the right form, two steps, and the score."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from goat_peft import recipes
from goat_peft.training import train

SHARED = Path(__file__).parents[2] / "shared" / "data"
SMALL = [
    "training.max_steps=2",
    "training.epochs=null",
    "training.batch_size=4",
    "training.warmup=0",
    "method.target_modules=all-linear",
    "evaluation.batch_size=4",
]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sst2_row(index: int) -> dict[str, object]:
    """A row as the hub's SST-2 has it."""
    return {"idx": index, "sentence": "the film is good" if index % 2 else "the film is bad", "label": index % 2}


def openbookqa_row(index: int) -> dict[str, object]:
    """A row as the hub's OpenBookQA has it."""
    choices = {"text": ["good", "bad", "fun", "dull"], "label": ["A", "B", "C", "D"]}
    return {"id": str(index), "question_stem": "the film is", "choices": choices, "answerKey": "ABCD"[index % 4]}


def sources(path: Path, *splits: str) -> list[str]:
    """Overrides that read splits from one local file."""
    return [f"task.data.{split}={{path: {path}, limit: 12}}" for split in splits]


def run(name: str, overrides: list[str], output: Path) -> dict[str, object]:
    """Train a shipped recipe with overrides; return its final row."""
    recipe = recipes.load(name, [*SMALL, *overrides, f"output_dir={output}"])
    return train(recipe).result["train_info"]["metrics"][-1]


def test_every_shipped_recipe_has_a_test_here_or_in_the_demo_s() -> None:
    assert recipes.shipped() == ["commonsense-smollm2", "demo-reviews", "sst2-minilm"]


def test_sst2(tiny_bert_dir: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [sst2_row(i) for i in range(12)])
    last = run(
        "sst2-minilm",
        [f"model={tiny_bert_dir}", "task.data.cut.validation=4", *sources(file, "train", "test")],
        tmp_path / "run",
    )
    assert last["test samples"] == 12


def test_commonsense(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [openbookqa_row(i) for i in range(12)])
    last = run(
        "commonsense-smollm2",
        [f"model={tiny_llama_dir}", *sources(file, "train", "validation", "test")],
        tmp_path / "run",
    )
    assert last["test samples"] == 12


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED}")
def test_sst2_on_real_rows(tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = SHARED / "glue" / "sst2"
    overrides = [
        f"model={tiny_bert_dir}",
        "task.data.cut=null",
        *sources(next(folder.glob("train*")), "train"),
        *sources(next(folder.glob("validation*")), "test"),
        "task.max_length=32",
    ]
    assert run("sst2-minilm", overrides, tmp_path / "run")["test samples"] == 12


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED}")
def test_commonsense_on_real_rows_in_the_form_the_recipe_s_comment_describes(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = SHARED / "commonsense" / "ARC-Easy"
    comment = [line for line in recipes.read_text("commonsense-smollm2").splitlines() if line.startswith("  #   task.")]
    # Templates alone: the comment's sources name files that the user puts in their place.
    words = [word for line in comment for word in shlex.split(line.lstrip(" #")) if ".data." not in word]
    assert len(words) == 4
    overrides = [
        f"model={tiny_llama_dir}",
        "task.data.validation=null",
        "task.max_length=400",
        "task.max_new_tokens=2",
        *words,
        *sources(next(folder.glob("train*")), "train"),
        *sources(next(folder.glob("test*")), "test"),
    ]
    assert run("commonsense-smollm2", overrides, tmp_path / "run")["test samples"] == 12
