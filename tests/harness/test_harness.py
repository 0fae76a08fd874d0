"""`goat eval --harness`: lm-eval's figures of a run, an adapter and a base are those of the model's own log-likelihoods."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft import cli, recipes, records
from goat_peft.training import harness as module
from goat_peft.training import train

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.usefixtures("_no_listing_of_packages")
CHOICES = ["good", "bad", "very dull"]
QUESTIONS = ["the film is", "a story and a plot so", "it was not", "this actor is very", "the answer is not", "love is"]


@pytest.fixture
def _no_listing_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lists the machine's packages each time it scores, which we do not keep and which takes a second."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of two local tasks over one file of rows: a choice by likelihood, and a generated text."""
    folder = tmp_path / "harness-tasks"
    folder.mkdir()
    rows = [{"question": text, "gold": index % 3} for index, text in enumerate(QUESTIONS)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    choose = common | {
        "task": "local_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": CHOICES,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.5},
    }
    write = common | {
        "task": "local_text",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{['good','bad','dull'][gold]}}",
        "generation_kwargs": {"until": ["film"], "max_gen_toks": 3, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder


@pytest.fixture
def base(lively_llama: Callable[[int], Path]) -> Path:
    """A tiny language model whose likelihoods differ widely between texts."""
    return lively_llama(3)


def main(arguments: list[str]) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


def chosen(model: torch.nn.Module, tokenizer: object) -> list[int]:
    """The choice whose tokens after the question are likeliest in sum, each row and choice in a forward of its own."""
    picks = []
    for question in QUESTIONS:
        sums = []
        for choice in CHOICES:
            context = tokenizer(question)["input_ids"]
            ids = tokenizer(f"{question} {choice}")["input_ids"]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logs[at - 1, ids[at]].item() for at in range(len(context), len(ids))))
        picks.append(max(range(len(CHOICES)), key=sums.__getitem__))
    return picks


def accuracy(picks: list[int]) -> float:
    return sum(pick == index % 3 for index, pick in enumerate(picks)) / len(picks)


def test_the_figures_of_a_run_its_adapter_and_the_base_are_those_of_their_own_likelihoods(
    generate: dict, base: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate["model"]["name"] = str(base)
    generate["training"] |= {"max_steps": 6, "learning_rate": 0.1}
    run = train(recipes.check(generate | {"method": {"name": "goat"}})).path
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = chosen(plain, tokenizer)
    after = chosen(PeftModel.from_pretrained(plain, run / "adapter").eval(), tokenizer)
    assert before != after, "the adapter changes no choice: the comparison below would prove nothing"
    figures = {}
    for name, target in {"run": run, "adapter": run / "adapter", "base": base}.items():
        folder = tmp_path / f"scored-{name}"
        arguments = ["--harness-include", str(tasks), "--output", str(folder), "evaluation.batch_size=4"]
        code = main(["eval", str(target), "--harness", "local_choice", *arguments])
        assert code == 0, capsys.readouterr().err
        figures[name] = records.read_json(folder / "harness.json")
        assert "local_choice" in capsys.readouterr().out
    values = {name: found["eval_info"]["results"]["local_choice"]["acc,none"] for name, found in figures.items()}
    assert values == {"run": accuracy(after), "adapter": accuracy(after), "base": accuracy(before)}
    found = figures["run"]
    assert found["eval_info"]["versions"] == {"local_choice": 2.5}
    assert found["eval_info"]["n-samples"]["local_choice"]["effective"] == len(QUESTIONS)
    assert found["meta_info"]["package_info"]["lm_eval-version"] == version("lm_eval")
    assert {kind["run_info"]["kind"] for kind in figures.values()} == {"run", "adapter", "base"}
    assert not (run / "harness.json").exists()


def test_generated_answers_are_scored_too_and_a_finished_evaluation_is_not_repeated(
    base: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scored"
    names = ["local_choice", "local_text"]
    done = module.harness(base, names, tasks, output=folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    right = 0
    for index, question in enumerate(QUESTIONS):
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        written = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).split("film")[0]
        right += text == ["good", "bad", "dull"][index % 3]
    rows = {(name, metric): value for name, _, _, metric, value, _ in done.rows()}
    assert rows == {
        ("local_choice", "acc"): accuracy(chosen(model, tokenizer)),
        ("local_text", "exact_match"): right / len(QUESTIONS),
    }
    monkeypatch.setattr(module, "_score", lambda *_: pytest.fail("scored again"))
    again = module.harness(base, names, tasks, output=folder)
    assert again.stored and again.result == json.loads(json.dumps(done.result))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--harness", "local_choice,nowhere"], "--harness nowhere: lm-eval"),
        (["--harness", "local_choice,local_choice"], "each once"),
        (["--harness", "local_choice", "--task", "gsm8k"], "--task gsm8k: is not scored beside --harness"),
        (["--harness", "local_choice", "task.max_new_tokens=3"], "task.max_new_tokens=3: means nothing to --harness"),
        (["--harness", "local_broken"], "--harness local_broken: cannot be loaded"),
        (["--harness", "local_unsafe"], "--harness local_unsafe: runs the programs that the model writes"),
    ],
)
def test_what_cannot_work_is_one_line(
    base: Path,
    tasks: Path,
    tmp_path: Path,
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.tasks import TaskManager

    task = json.loads((tasks / "local_choice.yaml").read_text())
    broken = task | {"task": "local_broken", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "none.jsonl")}}}
    (tasks / "local_broken.yaml").write_text(json.dumps(broken))
    (tasks / "local_unsafe.yaml").write_text(json.dumps(task | {"task": "local_unsafe", "unsafe_code": True}))
    # lm-eval's own 14000 task files take many seconds to index; an unknown name looks there too.
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda include_path, **_: TaskManager(None, include_path, include_defaults=False)
    )
    code = main(["eval", str(base), "--harness-include", str(tasks), "--output", str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert code != 0 and told in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_classifier_and_a_foreign_folder_are_refused(
    classify: dict, base: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify["training"] |= {"epochs": 1}
    run = train(recipes.check(classify)).path
    assert main(["eval", str(run), "--harness", "local_choice", "--harness-include", str(tasks)]) != 0
    assert "its task is text_classification" in capsys.readouterr().err
    for folder in (run, tasks):
        code = main(
            ["eval", str(base), "--harness", "local_choice", "--harness-include", str(tasks), "--output", str(folder)]
        )
        assert code != 0 and f"--output {folder}" in capsys.readouterr().err


def test_without_lm_eval_the_message_says_what_to_install(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(["eval", str(base), "--harness", "arc_easy"]) != 0
    assert capsys.readouterr().err.strip().endswith("pip install 'goat-peft[harness]'")
