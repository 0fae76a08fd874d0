"""A router that sends every token to the same experts is told about, with the layer and the shares."""

from __future__ import annotations

import re
from typing import Any

import torch
from tiny import adapted, token_batch
from torch import nn
from transformers import TrainerControl, TrainerState

from goat_peft.adapter import GoatLayer
from goat_peft.training.callbacks import CollapsedRouters


def look(callback: CollapsedRouters, model: nn.Module, step: int, forwards: int = 5) -> None:
    for seed in range(forwards):
        model(**token_batch(rows=4, length=9, seed=seed))
    callback.on_log(None, TrainerState(global_step=step), TrainerControl(), model=model, logs={"loss": 1.0})


def layer(model: nn.Module, name: str) -> Any:
    return next(module for module in model.modules() if isinstance(module, GoatLayer) and module.name == name)


def test_a_collapsed_layer_is_named_once_with_its_shares() -> None:
    told: list[str] = []
    model, callback = adapted().train(), CollapsedRouters(told.append)
    look(callback, model, 10)
    assert told == []
    with torch.no_grad():
        layer(model, "model.layers.1.self_attn.q_proj").goat_router["default"].zero_()  # a tie: the same two always win
    look(callback, model, 20)
    look(callback, model, 30)
    assert told == callback.notes and len(told) == 1
    assert told[0].startswith("step 20: the routers of 1 layers")
    (shares,) = re.findall(r"model\.layers\.1\.self_attn\.q_proj \(([^)]*)\)", told[0])
    assert sorted(shares.split()) == ["0.00", "0.00", "0.50", "0.50"] and "router_aux_loss_coef" in told[0]


def test_what_happened_before_the_last_look_does_not_hide_it() -> None:
    told: list[str] = []
    model, callback = adapted().train(), CollapsedRouters(told.append)
    look(callback, model, 10, forwards=40)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GoatLayer):
                module.goat_router["default"].zero_()
    look(callback, model, 20)
    assert len(told) == 1 and "routers of 14 layers" in told[0] and "and 11 more" in told[0]


def test_few_tokens_and_layers_that_use_all_experts_say_nothing() -> None:
    told: list[str] = []
    model = adapted(num_experts=2, top_k=2).train()
    look(CollapsedRouters(told.append), model, 10)
    model = adapted().train()
    with torch.no_grad():
        layer(model, "model.layers.0.mlp.up_proj").goat_router["default"].zero_()
    look(CollapsedRouters(told.append), model, 10, forwards=2)  # 72 tokens
    assert told == []
