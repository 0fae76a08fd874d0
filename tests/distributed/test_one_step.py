"""One step in two processes against one process that accumulates the same two micro-batches: loss, gradients, weights, the saved adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pair import in_pair
from peft import PeftModel
from safetensors.torch import load_file
from tiny import adapted, adapter_tensors, assert_same, padded_batch, seeded, settings, tiny_llama, token_batch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from goat_peft.training.engines import whole_trained_state

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
LR = 1e-2
COEFFICIENT = 0.5  # of the balance loss, so large that its gradient shows


def batches() -> list[dict[str, Tensor]]:
    """Of two processes: as many label tokens, one padded on purpose."""
    padded = padded_batch(rows=2, length=9, seed=5)
    return [token_batch(rows=2, length=8, seed=4), padded]


def fresh(coefficient: float = COEFFICIENT) -> nn.Module:
    return adapted(router_aux_loss_coef=coefficient).train()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model: nn.Module, micro_batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Two optimiser steps, each over all these micro-batches: losses, the first gradients."""
    optimizer = torch.optim.AdamW(trained(model), lr=LR)
    losses, gradients = [], {}
    for _ in range(2):
        part = []
        for batch in micro_batches:
            loss = model(**batch).loss / len(micro_batches)
            loss.backward()
            part.append(loss.detach())
        losses.append(torch.stack(part).sum())
        gradients = gradients or {
            n.removeprefix("module."): whole(p.grad) for n, p in model.named_parameters() if p.requires_grad
        }
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": torch.stack(losses), "gradients": gradients}


def shard(model: nn.Module) -> nn.Module:
    for block in model.get_base_model().model.layers:
        fully_shard(block)
    return fully_shard(model)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """What accelerate's `get_state_dict` takes from an FSDP2 model."""
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    )


def step_in_launch(rank: int, engine: str, folder: Path) -> dict[str, Any]:
    model = fresh()
    wrapped = {"ddp": DistributedDataParallel, "fsdp2": shard}[engine](model)
    found = step(wrapped, batches()[rank : rank + 1])
    distributed.all_reduce(found["losses"])
    found["losses"] /= 2
    found["sharded"] = sum(isinstance(p, DTensor) for p in model.parameters())
    state = None
    if engine == "fsdp2":  # as accelerate's `get_state_dict` takes it, and as `goat train` does
        state, own = whole_state(model), whole_trained_state(model)
        assert not any("base_layer" in name for name in own)
        if rank == 0:
            assert_same(own, {name: tensor for name, tensor in state.items() if name in own})
            assert {name for name in state if ".goat_" in name} == {name for name in own if ".goat_" in name}
    if rank == 0:
        model.save_pretrained(folder, state_dict=state)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = fresh()
    found = step(model, batches())
    found["folder"] = tmp_path_factory.mktemp("alone")
    model.save_pretrained(found["folder"])
    return found


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(engine: str, alone: dict[str, Any], tmp_path: Path) -> None:
    first, second = in_pair(step_in_launch, tmp_path / "pair", engine, tmp_path / "adapter")
    assert (first["sharded"] > 0) == (engine == "fsdp2")
    assert alone["losses"][0] != alone["losses"][1]
    torch.testing.assert_close(first["losses"], alone["losses"], **CLOSE)
    assert_same(first["gradients"], alone["gradients"], **CLOSE)
    assert_same(second["gradients"], first["gradients"])  # bit for bit

    names = sorted(path.name for path in alone["folder"].iterdir())
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == names
    saved, expected = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapter", alone["folder"])
    )
    assert {n: (t.dtype, t.shape) for n, t in saved.items()} == {n: (t.dtype, t.shape) for n, t in expected.items()}
    for tensors in (saved, expected):  # of bits, which may differ
        assert tensors.pop("base_model.model.goat_digest").shape == (32,)
    assert_same(saved, expected, rtol=1e-3, atol=1e-4)
    loaded = PeftModel.from_pretrained(seeded(tiny_llama), str(tmp_path / "adapter"))
    untouched = adapter_tensors(adapted())
    for name, tensor in adapter_tensors(loaded).items():
        assert torch.equal(tensor, untouched[name]) == (
            name.split(".")[-2] not in ("goat_A", "goat_B", "goat_router")
        ), name


def test_the_balance_loss_is_a_large_part_of_these_gradients(alone: dict[str, Any]) -> None:
    """So that the test above would notice one that a process forgot or weighted wrongly."""
    without = step(fresh(coefficient=0.0), batches())["gradients"]
    for name, gradient in alone["gradients"].items():
        if "goat_router" in name:
            assert (gradient - without[name]).norm() > 0.05 * gradient.norm(), name


def balance_in_launch(rank: int) -> tuple[Tensor, Tensor]:
    model = fresh()
    model(**batches()[rank])
    return model.get_balance_loss(), model.get_aux_loss().detach()


def test_the_balance_loss_of_a_launch_is_the_mean_of_its_processes(tmp_path: Path) -> None:
    """f and P are those of each process' own tokens, as they are each micro-batch's when gradients are accumulated."""
    found = in_pair(balance_in_launch, tmp_path)
    for rank, (balance, weighted) in enumerate(found):
        model = fresh()
        model(**batches()[rank])
        torch.testing.assert_close(balance, model.get_balance_loss())
        torch.testing.assert_close(weighted, COEFFICIENT * balance)
    assert settings().router_aux_loss_coef == 1e-3  # as the paper has it
