"""Training that diverges stops with the step and a way out; what is no failure does not stop it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from pair import in_pair
from torch import nn
from transformers import TrainerControl, TrainerState

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.training import train
from goat_peft.training.callbacks import Divergence

GOAT = {"name": "goat", "r": 8, "num_experts": 4, "top_k": 2}
NAN, INF = float("nan"), float("inf")


def watch(gradients: list[float], losses: list[float] | None = None, fp16: bool = False, logging: int = 1) -> None:
    """Show the callback these steps: one gradient and, each `logging` steps, one loss."""
    callback, weight = Divergence(), nn.Parameter(torch.ones(3))
    args = SimpleNamespace(fp16=fp16, learning_rate=0.5, max_grad_norm=0.0)
    for index, gradient in enumerate(gradients):
        state = TrainerState(global_step=index)
        weight.grad = torch.tensor([1.0, gradient, 1.0])
        callback.on_pre_optimizer_step(args, state, TrainerControl(), model=nn.ParameterList([weight]))
        state.global_step = index + 1
        callback.on_step_end(args, state, TrainerControl())
        if (index + 1) % logging == 0:
            callback.on_log(args, state, TrainerControl(), logs={"loss": losses[index] if losses else 2.0})


def test_three_steps_without_numbers_stop_and_name_the_first() -> None:
    with pytest.raises(
        UserError,
        match=r"learning_rate=0\.5: the gradients have been no numbers since step 4; try a smaller .*, or training\.max_grad_norm=1",
    ):
        watch([1.0, 1.0, 1.0, NAN, INF, NAN, 1.0])


def test_the_first_step_is_named_when_logs_are_far_apart() -> None:
    with pytest.raises(UserError, match="since step 7;"):
        watch([1.0] * 6 + [NAN] * 30, logging=1000)


def test_a_norm_beyond_float32_stops_though_every_clipped_gradient_is_a_number() -> None:
    """Clipping by an infinite norm leaves zeros; the trainer's log still has the norm."""
    weight, callback = nn.Parameter(torch.ones(3)), Divergence()
    args = SimpleNamespace(fp16=False, learning_rate=0.5, max_grad_norm=1.0)

    def step(number: int, gradient: float) -> None:
        weight.grad = torch.full((3,), gradient)
        norm = nn.utils.clip_grad_norm_([weight], args.max_grad_norm)
        assert weight.grad.isfinite().all()
        state = TrainerState(global_step=number)
        callback.on_pre_optimizer_step(args, state, TrainerControl(), model=nn.ParameterList([weight]))
        callback.on_log(args, state, TrainerControl(), logs={"loss": 2.0, "grad_norm": norm.item()})

    for number, gradient in enumerate([1.0, 1e30, 1e30, 1.0, 1e30, 1e30], 1):
        step(number, gradient)
    with pytest.raises(
        UserError,
        match=r"the norm of the gradients has been no number since step 5; try a smaller learning rate or a longer warmup$",
    ):
        step(7, 1e30)


def in_one_shard(rank: int) -> str:
    """The gradients of the second process' shards are no numbers; those of the first are."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
    torch.distributed.destroy_process_group()  # accelerate starts its own
    with pytest.raises(UserError) as told:
        watch([1.0] * 4 + [[1.0, NAN][rank]] * 30, logging=1000)
    return str(told.value)


def test_what_one_process_of_a_launch_finds_stops_all(tmp_path: Path) -> None:
    first, second = in_pair(in_one_shard, tmp_path, timeout=30)
    assert first == second and "no numbers since step 5;" in first


@pytest.mark.parametrize("gradients", [[1.0, INF, INF, 1.0, INF, 1.0], [1.0] * 12])
def test_fewer_are_forgiven(gradients: list[float]) -> None:
    watch(gradients)


def test_steps_that_a_loss_scale_skips_are_no_failure() -> None:
    watch([INF] * 20, fp16=True)
    watch([INF] * 3, [NAN, NAN, 2.0], fp16=True)
    with pytest.raises(UserError, match="the loss is nan at step 2;"):
        watch([INF] * 4, [2.0, NAN, NAN, NAN], fp16=True)


def test_a_loss_that_explodes_stops_before_it_overflows() -> None:
    with pytest.raises(UserError, match=r"the loss is 900 at step 3; it was 2 at first; try a smaller"):
        watch([1.0] * 6, [2.0, 5.0, 400.0, 700.0, 900.0, 900.0])
    watch([1.0] * 6, [2.0, 400.0, 400.0, 5.0, 400.0, 400.0])
    watch([1.0] * 4, [4000.0, 3000.0, 3000.0, 3000.0])  # a regression on large numbers


@pytest.mark.parametrize("rate", [1e25, 1e4])
def test_goat_train_stops_at_an_absurd_learning_rate(generate: dict[str, Any], rate: float) -> None:
    training = {
        "learning_rate": rate,
        "max_steps": 20,
        "batch_size": 8,
        "logging_steps": 1,
        "schedule": "constant",
        "max_grad_norm": 0,
    }
    with pytest.raises(
        UserError,
        match=r"training\.learning_rate=.*step \d+.*; try a smaller learning rate or a longer warmup, or training.max_grad_norm=1",
    ):
        train(recipes.check(generate | {"method": GOAT, "training": training}))
