"""The balance loss's gradient through transformers' Trainer, TRL's SFTTrainer and DDP, against hand-computed targets.

The coefficient is 1, so that a lost or doubled balance loss shows in every router's gradient.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hand import hand_gradients, hand_losses
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, adapted, assert_same, gradients, padded_batch, tiny_bert, tiny_t5, token_batch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother
from trl import SFTConfig, SFTTrainer

from goat_peft import BalanceLossMixin, GoatConfig

CLOSE = {"rtol": 1e-3, "atol": 1e-6}


def rows_of(batches: list[dict[str, Tensor]]) -> Dataset:
    """The rows of some batches, one after the other."""
    rows = [
        {name: t[i].tolist() for name, t in batch.items()} for batch in batches for i in range(len(batch["input_ids"]))
    ]
    return Dataset.from_list(rows).with_format("torch")


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    found: dict[str, Tensor] | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if self.found is None:
            self.found = gradients(model)


class InOrder:
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class PlainTrainer(InOrder, Trainer):
    pass


class MixinTrainer(InOrder, BalanceLossMixin, Trainer):
    pass


class PlainSFT(InOrder, SFTTrainer):
    pass


class MixinSFT(InOrder, BalanceLossMixin, SFTTrainer):
    pass


def arguments(cls: type, path: Path, rows: int, steps: int, **extra: Any) -> TrainingArguments:
    return cls(
        output_dir=str(path), per_device_train_batch_size=rows, gradient_accumulation_steps=steps, max_steps=1, max_grad_norm=0.0,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        **extra,
    )  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


def trained_gradients(
    trainer_cls: type, model: nn.Module, batches: list[dict[str, Tensor]], path: Path, **extra: Any
) -> dict[str, Tensor]:
    """Gradients that reach the optimizer when the trainer accumulates over `batches`, all of as many rows."""
    keep = Gradients()
    accepts = extra.pop("model_accepts_loss_kwargs", None)
    kwargs: dict[str, Any] = {}
    args_cls = TrainingArguments
    if issubclass(trainer_cls, SFTTrainer):
        args_cls = SFTConfig
        extra = {
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "bf16": False,
            "gradient_checkpointing": False,
        } | extra
        kwargs["processing_class"] = tokenizer()
    rows = len(batches[0]["input_ids"])
    trainer = trainer_cls(
        model=model, args=arguments(args_cls, path, rows, len(batches), **extra), train_dataset=rows_of(batches), data_collator=collate,
        callbacks=[keep], **kwargs,
    )  # fmt: skip
    if accepts is not None:
        trainer.model_accepts_loss_kwargs = accepts
    trainer.train()
    assert keep.found is not None
    return {name: t for name, t in keep.found.items() if "goat_" in name}


def items(batch: dict[str, Tensor]) -> int:
    return int(batch["labels"][:, 1:].ne(-100).sum())


# ---- transformers' Trainer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("trainer_cls", [PlainTrainer, MixinTrainer])
def test_trainer_causal_equal_micro_batches(trainer_cls: type, micro_batches: int, tmp_path: Path) -> None:
    """The Trainer passes num_items_in_batch to a causal model, whose loss it then does not divide. The mixin adds nothing twice."""
    model = adapted(router_aux_loss_coef=1.0)
    expected = hand_gradients(model, [padded_batch()], [1.0], [1.0])
    found = trained_gradients(trainer_cls, model, [padded_batch()] * micro_batches, tmp_path)
    assert_same(found, expected, **CLOSE)


def test_trainer_causal_unequal_micro_batches(tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    batches = [padded_batch(seed=1), padded_batch(seed=2), token_batch(seed=3)]
    batches[0]["labels"][:, :4] = -100  # a prompt
    shares = [items(batch) / sum(map(items, batches)) for batch in batches]
    assert len({round(share, 3) for share in shares}) == 3
    expected = hand_gradients(model, batches, shares, shares)
    assert_same(trained_gradients(PlainTrainer, model, batches, tmp_path), expected, **CLOSE)


def test_trainer_with_checkpointing(tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    expected = hand_gradients(model, [padded_batch()], [1.0], [1.0])
    found = trained_gradients(
        PlainTrainer,
        model,
        [padded_batch()] * 2,
        tmp_path,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    assert_same(found, expected, **CLOSE)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_trainer_classification_head(micro_batches: int, tmp_path: Path) -> None:
    """A BERT head ignores num_items_in_batch; its trainer says so, and averages the micro-batches itself."""
    model = adapted(tiny_bert, router_aux_loss_coef=1.0)
    batch = padded_batch() | {"labels": torch.tensor([0, 1, 2])}
    expected = hand_gradients(model, [batch], [1.0], [1.0])
    found = trained_gradients(PlainTrainer, model, [batch] * micro_batches, tmp_path, model_accepts_loss_kwargs=False)
    assert_same(found, expected, **CLOSE)


def test_trainer_encoder_decoder(tmp_path: Path) -> None:
    """T5's loss ignores num_items_in_batch too."""
    model = adapted(tiny_t5, router_aux_loss_coef=1.0)
    batch = token_batch(rows=2)
    model.train()
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    assert_same(
        trained_gradients(PlainTrainer, model, [batch] * 2, tmp_path, model_accepts_loss_kwargs=False),
        expected,
        **CLOSE,
    )


@pytest.mark.parametrize("equal", [True, False])
def test_trainer_label_smoothing_through_the_mixin(equal: bool, tmp_path: Path) -> None:
    """Label smoothing ignores the model's loss; the mixin adds the balance loss, weighted by label tokens."""
    batches = [padded_batch()] * 2 if equal else [padded_batch(seed=1), token_batch(seed=2)]
    counts = [items(batch) for batch in batches]
    model = adapted(router_aux_loss_coef=1.0)

    total = 0.0
    parameters = {name: p for name, p in model.named_parameters() if "goat_" in name}
    for batch, count in zip(batches, counts, strict=True):
        _, aux = hand_losses(model, batch)
        smoothed = LabelSmoother(epsilon=0.1)({"logits": model(**batch).logits}, batch["labels"], shift_labels=True)
        total = total + count / sum(counts) * (smoothed + aux)
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    found = trained_gradients(MixinTrainer, model, batches, tmp_path / "mixin", label_smoothing_factor=0.1)
    assert_same(found, expected, **CLOSE)

    bare = trained_gradients(
        PlainTrainer, adapted(router_aux_loss_coef=1.0), batches, tmp_path / "bare", label_smoothing_factor=0.1
    )
    name = next(name for name in expected if "goat_router" in name)
    assert not torch.allclose(bare[name], expected[name], **CLOSE)  # what the mixin is for


def test_trainer_custom_loss_through_the_mixin(tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    batch = padded_batch()
    task, aux = hand_losses(model, batch)
    parameters = {name: p for name, p in model.named_parameters() if "goat_" in name}
    expected = dict(zip(parameters, torch.autograd.grad(task + aux, list(parameters.values())), strict=True))

    def token_mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        flat = nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return flat / num_items_in_batch

    class Custom(MixinTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(compute_loss_func=token_mean, **kwargs)

    assert_same(trained_gradients(Custom, model, [batch] * 2, tmp_path), expected, **CLOSE)


def test_evaluation_reports_the_task_loss(tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    batch = padded_batch()
    task, _ = hand_losses(model, batch)
    trainer = MixinTrainer(
        model=model,
        args=arguments(TrainingArguments, tmp_path, 3, 1, per_device_eval_batch_size=3),
        eval_dataset=rows_of([batch]),
        data_collator=collate,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(task.item(), rel=1e-5)


# ---- TRL's SFTTrainer ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_sft_equal_micro_batches(micro_batches: int, tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    expected = hand_gradients(model, [padded_batch()], [1.0], [1.0])
    assert_same(trained_gradients(PlainSFT, model, [padded_batch()] * micro_batches, tmp_path), expected, **CLOSE)


@pytest.mark.parametrize("trainer_cls", [PlainSFT, MixinSFT])
def test_sft_unequal_micro_batches(trainer_cls: type, tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    batches = [padded_batch(seed=1), padded_batch(seed=2), token_batch(seed=3)]
    batches[0]["labels"][:, :4] = -100
    shares = [items(batch) / sum(map(items, batches)) for batch in batches]
    expected = hand_gradients(model, batches, shares, shares)
    assert_same(trained_gradients(trainer_cls, model, batches, tmp_path), expected, **CLOSE)


def test_sft_with_checkpointing(tmp_path: Path) -> None:
    model = adapted(router_aux_loss_coef=1.0)
    expected = hand_gradients(model, [padded_batch()], [1.0], [1.0])
    found = trained_gradients(
        PlainSFT,
        model,
        [padded_batch()] * 2,
        tmp_path,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    assert_same(found, expected, **CLOSE)


def test_sft_label_smoothing_through_the_mixin(tmp_path: Path) -> None:
    """TRL then looks at the model once more, without gradients, for its metrics; that must not take the balance loss away."""
    model = adapted(router_aux_loss_coef=1.0)
    batch = padded_batch()
    _, aux = hand_losses(model, batch)
    smoothed = LabelSmoother(epsilon=0.1)({"logits": model(**batch).logits}, batch["labels"], shift_labels=True)
    parameters = {name: p for name, p in model.named_parameters() if "goat_" in name}
    expected = dict(zip(parameters, torch.autograd.grad(smoothed + aux, list(parameters.values())), strict=True))
    found = trained_gradients(MixinSFT, model, [batch] * 2, tmp_path, label_smoothing_factor=0.1)
    assert_same(found, expected, **CLOSE)


# ---- DDP -------------------------------------------------------------------------------------------------------------------------------


def _ddp_worker(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    model = adapted(router_aux_loss_coef=1.0)
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped.train()
    wrapped(**padded_batch(seed=10 + rank)).loss.backward()
    save_file(gradients(model), f"{path}/{rank}.safetensors")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads and the interpreter's shutdown can wait for each other


@pytest.mark.slow  # tests/distributed/test_one_step.py does it for every engine, with fewer checks of the Trainer
def test_ddp_gradient_is_the_mean_over_processes(tmp_path: Path) -> None:
    workers = torch.multiprocessing.spawn(_ddp_worker, args=(str(tmp_path),), nprocs=2, join=False)
    try:
        assert workers.join(timeout=120) or workers.join(timeout=30), "the two processes did not finish"
    finally:
        for process in workers.processes:
            process.kill()
    model: PeftModel = adapted(router_aux_loss_coef=1.0)
    batches = [padded_batch(seed=10), padded_batch(seed=11)]
    expected = hand_gradients(model, batches, [0.5, 0.5], [0.5, 0.5])
    for rank in range(2):
        assert_same(load_file(tmp_path / f"{rank}.safetensors"), expected, **CLOSE)


@pytest.mark.parametrize("variant", [{"router": "threshold"}, {"router": "top_p"}, {"shared_experts": 1}], ids=str)
def test_router_variants_survive_checkpointing(variant: dict) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    model = get_peft_model(base, GoatConfig(r=4, num_experts=4, **variant)).train()
    model.config.use_cache = False
    ids = torch.randint(0, 50, (2, 6))
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
