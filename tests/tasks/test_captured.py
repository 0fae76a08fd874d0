"""Steps that are captured and replayed train as steps do; on the CPU a tape of operators stands in for CUDA graphs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
    set_seed,
)
from transformers.utils import import_utils

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import bind, captured, processes
from goat_peft.tasks.captured import FewLengths
from goat_peft.tasks.text_classification import TextClassification
from goat_peft.tasks.trainers import ClassificationTrainer
from goat_peft.training import engines, train
from goat_peft.training import run as run_module
from goat_peft.training.evaluation import usage_rows
from goat_peft.training.folder import RunFolder
from goat_peft.training.loading import device, load_base, load_processor
from goat_peft.training.run import training_arguments

sys.path.insert(0, str(Path(__file__).parent))
from replaying import Tapes

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FIGURES = {"loss", "eval_loss", "grad_norm", "balance_loss", "expert_imbalance", "experts_idle"}


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tapes]:
    """The stand-in in place of CUDA graphs; transformers is told, as it asks, that a stream is capturing. A GPU has graphs of its own to test."""
    if torch.cuda.is_available():
        pytest.skip("stands in for a GPU, and there is one")
    found = Tapes()
    monkeypatch.setattr(captured, "recorder", lambda device: found)
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    yield found


@pytest.fixture
def recipe(classify: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """58 training texts, a few of them of more than 32 tokens, in batches of 8: the last has 2."""
    rows = []
    for index in range(58):
        words = "great fun love" if index % 2 else "awful dull hate"
        text = (
            f"the film is {words} and so it was"
            + " very" * (index % 5)
            + " not a plot" * (10 if index % 16 == 0 else 0)
        )
        rows.append({"text": text, "label": "fresh" if index % 2 else "rotten", "film": index})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    test = write_rows(tmp_path / "test.jsonl", rows[:8])
    classify["task"] |= {"data": {"train": {"path": path}, "test": {"path": test}}, "max_length": 64}
    classify["method"] = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.0}
    classify["training"] |= {"epochs": 3, "learning_rate": 0.003}
    return classify


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@dataclass
class Outcome:
    log: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    usage: list[dict[str, Any]]
    notes: list[str]
    operations: float


def trained(recipe: dict[str, Any], captures: bool = True, shapes: int = captured.SHAPES, **training: Any) -> Outcome:
    """What training by the recipe gives; with `shapes=0` of the same batches as captured ones, without any graph."""
    data = json.loads(json.dumps(recipe))
    data["training"] |= training
    checked = recipes.check(data)
    task, method = bind(checked.task), METHODS[checked.method.name]
    set_seed(0)
    processor = load_processor(checked.model, task)
    model = method.build(load_base(checked.model, task, processor).to(device()), checked.method, task.peft_type)
    arguments = training_arguments(checked, RunFolder(Path(recipe["output_dir"])), True) | {"save_strategy": "no"}
    rows = task.load().train
    scored = task.prepare(rows.select(range(3)), processor, "validation")  # after each epoch
    trainer = task.trainer(model, arguments, task.prepare(rows, processor, "train"), scored, processor, [])
    if captures:
        trainer.capture_steps(lambda note: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "SHAPES", shapes)
        trainer.train()
    log = [{k: v for k, v in row.items() if k in FIGURES} for row in trainer.state.log_history[:-1]]
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return Outcome(log, weights, usage_rows(model), trainer.notes, trainer.state.total_flos)


def assert_alike(one: Outcome, other: Outcome) -> None:
    """The same log, weights and expert usage."""
    assert len(one.log) == len(other.log) > 3
    for a, b in zip(one.log, other.log, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=1e-4, atol=1e-6, msg=name)
    assert len(one.usage) == len(other.usage)
    for a, b in zip(one.usage, other.usage, strict=True):
        assert a["layer"] == b["layer"] and a["tokens"] == b["tokens"] > 50
        assert a["share"] == pytest.approx(b["share"], abs=1e-6)


@pytest.mark.parametrize(("accumulation", "replays"), [(1, 8), (3, 6)])
def test_captured_steps_train_as_others(recipe: dict, tapes: Tapes, accumulation: int, replays: int) -> None:
    """Two lengths, and last batches of 2 rows that are seen too rarely. With accumulation, replays of both graphs and steps without one add up."""
    settings = {"gradient_accumulation_steps": accumulation, "epochs": 2}
    plain = trained(recipe, shapes=0, **settings)
    assert tapes.captures == 0
    same = trained(recipe, **settings)
    assert (tapes.captures, tapes.replays) == (2, replays)
    assert same.notes == []
    assert_alike(plain, same)
    assert len(same.usage) == 13 and all(
        row["balance_loss"] >= 1 and row["expert_imbalance"] >= 1 for row in same.log if "loss" in row
    )


def test_padding_to_few_lengths_changes_no_loss(recipe: dict, tapes: Tapes) -> None:
    short, even = trained(recipe, captures=False, epochs=1), trained(recipe, shapes=0, epochs=1)
    losses = [[row["loss"] for row in outcome.log if "loss" in row] for outcome in (short, even)]
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "dora", "adamole", "hydralora"])
def test_other_methods_too(recipe: dict, tapes: Tapes, method: str) -> None:
    recipe["method"] = {"name": method} | ({} if method == "full" else {"lora_dropout": 0.0})
    plain, same = trained(recipe, shapes=0), trained(recipe)
    assert (tapes.captures, tapes.replays) == (2, 15)
    assert_alike(plain, same)


def test_a_step_that_waits_for_the_device_is_not_captured_and_nothing_is_lost(recipe: dict, tapes: Tapes) -> None:
    """Dropout on the CPU reads its seed on the host."""
    recipe["method"]["lora_dropout"] = 0.1
    plain, same = trained(recipe, shapes=0, epochs=1), trained(recipe, epochs=1)
    (note,) = same.notes
    assert note.startswith("training.cuda_graphs=True: the step after step ")
    assert "not permitted when stream is capturing" in note and note.endswith("training goes on without")
    assert tapes.captures == tapes.replays == 0
    assert_alike(plain, same)


@pytest.mark.slow
def test_a_killed_run_resumes(recipe: dict, tapes: Tapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 10, on parameters that are loaded before anything is captured; it ends where the whole run does."""
    recipe["training"] |= {"cuda_graphs": True, "save_steps": 10}

    class Crash(run_module.Divergence):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 12:
                raise KeyboardInterrupt

    def weights(place: str, resume: bool = False) -> dict[str, torch.Tensor]:
        run = train(recipes.check(recipe | {"output_dir": str(tmp_path / place)}), resume=resume)
        assert (run.result["run_info"]["resumed_from"] == "checkpoint-10") == resume
        return {
            k: v
            for k, v in load_file(run.path / "adapter" / "adapter_model.safetensors").items()
            if v.is_floating_point()
        }

    whole = weights("whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Divergence", Crash)
        with pytest.raises(KeyboardInterrupt):
            weights("cut")
    before = tapes.replays
    resumed = weights("cut", resume=True)
    assert tapes.replays > before and resumed.keys() == whole.keys()
    for name, tensor in resumed.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_images_too(pictures: dict, tapes: Tapes) -> None:
    plain, same = trained(pictures, shapes=0), trained(pictures)
    assert (tapes.captures, tapes.replays, same.notes) == (1, 6, [])
    assert_alike(plain, same)
    assert same.operations == trained(pictures, captures=False).operations > 1e6


@pytest.fixture
def texts(generate: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """38 sums to learn, some of more than 32 tokens, in batches of 6: the last has 2."""
    rows = []
    for index in range(38):
        rows.append(
            {"q": "what is" + " one plus" * (18 if index % 9 == 0 else index % 3) + " two ?", "a": f"{index % 4}"}
        )
    generate["task"] |= {
        "data": {key: {"path": write_rows(tmp_path / f"{key}.jsonl", rows[:count])} for key, count in (("train", 38), ("test", 4))},
        "prompt": "{q}\n", "response": "it is {a}", "answer": "{a}", "max_length": 64,
    }  # fmt: skip
    generate["method"] = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2, "lora_dropout": 0.0}
    generate["training"] |= {
        "max_steps": None,
        "epochs": 3,
        "learning_rate": 0.003,
        "batch_size": 6,
        "logging_steps": 1,
    }
    return generate


@pytest.mark.parametrize("accumulation", [1, 3])
def test_generation_too(texts: dict, tapes: Tapes, accumulation: int) -> None:
    """The loss is the mean over all response tokens of an optimiser step, whose number differs from replay to replay."""
    settings = {"gradient_accumulation_steps": accumulation}
    plain, same = trained(texts, shapes=0, **settings), trained(texts, **settings)
    assert tapes.captures == 2 and tapes.replays > 5 and same.notes == []
    assert_alike(plain, same)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_generation_has_the_loss_of_trl(texts: dict, tapes: Tapes, accumulation: int) -> None:
    """The response's alone, whatever the balance loss is."""
    texts["method"]["router_aux_loss_coef"] = 0.3
    settings = {"gradient_accumulation_steps": accumulation}
    theirs, ours = trained(texts, captures=False, **settings), trained(texts, shapes=0, **settings)
    losses, norms = (
        [[row[key] for row in run.log if key in row] for run in (theirs, ours)] for key in ("loss", "grad_norm")
    )
    assert len(losses[0]) >= 7 and losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)


def test_no_text_is_padded_beyond_what_the_model_can_read(texts: dict, tapes: Tapes, tmp_path: Path) -> None:
    """GPT-2 has one embedding for each of 48 places; the longest text has fewer tokens, and 64 is the next multiple of 32."""
    tokenizer = AutoTokenizer.from_pretrained(texts["model"]["name"])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    texts["model"]["name"], texts["task"]["max_length"] = str(tmp_path / "gpt2"), 48
    assert trained(texts).notes == [] and tapes.replays > 5


class Latecomer(BertForSequenceClassification):
    """Has a bias that takes part from the fourth training forward on."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.late = torch.nn.Parameter(torch.zeros(2))
        self.forwards = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels")
        output = super().forward(*args, **kwargs)
        self.forwards += self.training
        logits = output.logits + (self.late if self.forwards > captured.EAGER else 0.0)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_gradient_from_a_refused_capture_is_dropped(tiny_bert_dir: Path, tapes: Tapes, tmp_path: Path) -> None:
    """It would count twice here, and on a GPU be memory that nothing wrote."""
    rows = [{"input_ids": [5, 6, 7 + i % 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(24)]
    found = []
    for captures in (False, True):
        set_seed(0)
        model = Latecomer(BertConfig.from_pretrained(tiny_bert_dir, num_labels=2))
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            logging_steps=1,
            report_to=[],
            remove_unused_columns=False,
            save_strategy="no",
            use_cpu=True,
        )
        trainer = ClassificationTrainer(model=model, args=arguments, train_dataset=rows)
        if captures:
            trainer.capture_steps(lambda note: None)
        trainer.train()
        found.append([row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row])
    (note,) = trainer.notes
    assert "a gradient is not where the steps before had it" in note
    assert len(found[0]) == 18 and found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_training_of_rare_shapes_says_that_nothing_was_captured(recipe: dict, tapes: Tapes) -> None:
    same = trained(recipe, epochs=None, max_steps=3)
    (note,) = same.notes
    assert "no step was captured" in note and tapes.captures == 0


@on_a_gpu
@pytest.mark.parametrize("method", ["goat", "lora", "dora", "full"])
def test_generation_on_a_gpu(texts: dict, method: str) -> None:
    if method != "goat":
        texts["method"] = {"name": method} | ({} if method == "full" else {"lora_dropout": 0.0})
    plain, same = trained(texts, shapes=0), trained(texts)
    assert same.notes == []
    losses = [[row["loss"] for row in outcome.log if "loss" in row] for outcome in (plain, same)]
    assert len(losses[0]) == 21 and losses[0] == pytest.approx(losses[1], rel=2e-3)


@on_a_gpu
def test_images_on_a_gpu(pictures: dict) -> None:
    """With a worker, whose batches another thread pins while a step is captured."""
    pictures["task"]["workers"] = 1
    plain, same = trained(pictures, shapes=0), trained(pictures)
    assert same.notes == []
    losses = [[row["loss"] for row in outcome.log if "loss" in row] for outcome in (plain, same)]
    assert len(losses[0]) == 12 and losses[0] == pytest.approx(losses[1], rel=2e-3)


@on_a_gpu
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", ["goat", "lora", "dora", "adamole", "full"])
def test_graphs_train_as_steps_do(recipe: dict, method: str, accumulation: int) -> None:
    if method != "goat":
        recipe["method"] = {"name": method} | ({} if method == "full" else {"lora_dropout": 0.0})
    plain = trained(recipe, shapes=0, gradient_accumulation_steps=accumulation)
    same = trained(recipe, gradient_accumulation_steps=accumulation)
    assert same.notes == []
    for a, b in zip(plain.log, same.log, strict=True):
        for name in a.keys() & {"loss", "eval_loss", "balance_loss"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name
    assert [row["tokens"] for row in plain.usage] == [row["tokens"] for row in same.usage]


@on_a_gpu
@pytest.mark.parametrize("method", ["goat", "lora", "adamole"])
def test_every_replay_draws_its_own_dropout(recipe: dict, method: str) -> None:
    """Without learning, losses of one batch, taken whole, differ by dropout alone; and the draws are those of steps without graphs."""
    recipe["method"] = {"name": method, "r": 8, "lora_dropout": 0.5}
    settings = {"learning_rate": 1e-12, "batch_size": 58, "epochs": 12}
    plain, same = trained(recipe, shapes=0, **settings), trained(recipe, **settings)
    norms = [[row["grad_norm"] for row in outcome.log if "grad_norm" in row] for outcome in (plain, same)]
    assert len(set(norms[1])) == 12 and norms[0] == pytest.approx(norms[1], rel=1e-2)


@on_a_gpu
def test_a_capture_that_fails_leaves_the_device_as_it_was(recipe: dict) -> None:
    """Full-rank experts ask the device which tokens are theirs; after that steps draw, allocate and learn as if nothing had been."""
    recipe["method"] = {"name": "full-moe", "num_experts": 2, "top_k": 1}
    plain, same = trained(recipe, shapes=0), trained(recipe)
    (note,) = same.notes
    assert "could not be captured" in note
    losses = [[row["loss"] for row in outcome.log if "loss" in row] for outcome in (plain, same)]
    assert len(losses[0]) == 24 and losses[0] == pytest.approx(losses[1], rel=2e-3)
    torch.cuda.empty_cache()
    torch.rand(8, device="cuda")
    recipe["method"] = {"name": "lora", "r": 8}
    assert trained(recipe).notes == []  # and the next run is captured again


def test_a_run_tells_what_became_of_it(recipe: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU the field changes nothing."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe["training"] |= {"cuda_graphs": True, "epochs": None, "max_steps": 1}
    note = "training.cuda_graphs=True: no CUDA device, so steps are not captured"
    assert note in train(recipes.check(recipe)).result["run_info"]["notes"]
    assert note in capsys.readouterr().err


def test_batches_have_few_lengths(tiny_bert_dir: Path) -> None:
    pad = FewLengths(DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_bert_dir)), longest=70)
    lengths = [
        pad([{"input_ids": [5] * n, "attention_mask": [1] * n}, {"input_ids": [5], "attention_mask": [1]}])[
            "input_ids"
        ].shape[1]
        for n in (1, 32, 33, 64, 65, 70, 71)
    ]
    assert lengths == [32, 32, 64, 64, 70, 70, 71]
    batch = pad([{"input_ids": [5] * 3, "attention_mask": [1] * 3, "labels": 1}])
    assert batch["attention_mask"].sum() == 3 and batch["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training": {"fp16": True}}, "training.cuda_graphs=True: does not go with fp16"),
        ({"training": {"gradient_checkpointing": True}}, "does not go with gradient_checkpointing"),
        ({"model": {"quantize": "nf4"}}, "training.cuda_graphs=True: does not go with model.quantize=nf4"),
    ],
)
def test_what_it_does_not_go_with_is_refused(recipe: dict, change: dict, told: str) -> None:
    recipe["training"]["cuda_graphs"] = True
    for block, values in change.items():
        recipe[block] |= values
    with pytest.raises(UserError, match=told) as error:
        recipes.check(recipe)
    assert "\n" not in str(error.value)


def test_a_task_that_cannot_be_captured_is_refused(recipe: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe["training"]["cuda_graphs"] = True
    monkeypatch.setattr(TextClassification, "captures_steps", False)
    with pytest.raises(
        UserError, match="training.cuda_graphs=True: the steps of text_classification cannot be captured"
    ):
        recipes.check(recipe)


def test_several_processes_are_refused(recipe: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    recipe["training"]["cuda_graphs"] = True
    with pytest.raises(UserError, match="training.cuda_graphs=True: works in one process"):
        engines.check_graphs(recipes.check(recipe).training)
