"""DeepSpeed ZeRO-2 and ZeRO-3 on two CPU processes: the step and the adapter of one process. Skipped where DeepSpeed is not installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import in_pair
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from test_one_step import CLOSE, LR, batches, fresh, step, trained
from tiny import adapter_tensors, assert_same, seeded, settings, tiny_llama
from torch import Tensor, nn

from goat_peft.training.engines import whole_trained_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs `pip install deepspeed`"),
]


def engine_of(model: nn.Module, stage: int) -> Any:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": float("inf"),
    }
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained(model), lr=LR), config=config)[0]


def step_in_launch(rank: int, stage: int, folder: Path) -> dict[str, Any]:
    os.environ["DS_ACCELERATOR"] = "cpu"
    model = fresh()
    engine = engine_of(model, stage)
    from deepspeed.utils import safe_get_full_grad

    losses, gradients = [], {}
    for _ in range(2):
        loss = engine(**batches()[rank]).loss
        engine.backward(loss)
        gradients = gradients or {
            n: safe_get_full_grad(p).clone() for n, p in model.named_parameters() if p.requires_grad
        }
        engine.step()
        losses.append(loss.detach())
    total = torch.stack(losses)
    torch.distributed.all_reduce(total)
    state = whole_trained_state(model)
    if rank == 0:
        model.save_pretrained(folder, state_dict=state)
    return {"losses": total / 2, "gradients": gradients, "parted": sum(p.numel() == 0 for p in model.parameters())}


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_do_what_one_does(stage: int, tmp_path: Path) -> None:
    model = fresh()
    alone = step(model, batches())
    model.save_pretrained(tmp_path / "alone")
    first, second = in_pair(step_in_launch, tmp_path / "pair", stage, tmp_path / "adapter")
    assert (first["parted"] > 0) == (stage == 3)
    torch.testing.assert_close(first["losses"], alone["losses"], **CLOSE)
    assert_same(first["gradients"], alone["gradients"], **CLOSE)
    assert_same(second["gradients"], first["gradients"])
    saved, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "alone"))
    assert {n: (t.dtype, t.shape) for n, t in saved.items()} == {n: (t.dtype, t.shape) for n, t in expected.items()}
    for tensors in (saved, expected):  # of bits, which may differ
        assert tensors.pop("base_model.model.goat_digest").shape == (32,)
    assert_same(saved, expected, rtol=1e-3, atol=1e-4)
    PeftModel.from_pretrained(seeded(tiny_llama), str(tmp_path / "adapter"))


def start_on_parted_weights(rank: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """A fresh adapter, and a loaded one, on a base whose weights ZeRO-3 has parted before."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    base, again = seeded(tiny_llama), seeded(tiny_llama)
    for model in (base, again):
        deepspeed.zero.Init(module=model, config_dict_or_path=zero)
    torch.manual_seed(1)
    found = get_peft_model(base, settings())
    loaded = PeftModel.from_pretrained(again, str(folder))
    parted = sum(p.numel() == 0 for p in base.parameters())
    return (*({n: t for n, t in adapter_tensors(m).items() if "base_layer" not in n} for m in (found, loaded)), parted)


def test_parted_base_weights_are_gathered_for_the_start_and_for_the_check_of_a_loaded_adapter(tmp_path: Path) -> None:
    model = seeded(tiny_llama)
    torch.manual_seed(1)
    model = get_peft_model(model, settings())
    model.save_pretrained(tmp_path / "adapter")
    for found, loaded, parted in in_pair(start_on_parted_weights, tmp_path / "pair", tmp_path / "adapter"):
        assert parted > 0
        assert_same(found, adapter_tensors(model))
        assert_same(loaded, adapter_tensors(model))
