"""The balance loss reaches the routers through DPO's and GRPO's losses, which are made of log-probabilities alone.

The coefficient is large in one run and 0 in the other: the routers' gradients must differ by so much of the balance loss's, computed here from
the equations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from goat_peft import BalanceLossMixin, GoatConfig
from goat_peft.adapter import GoatLinear
from goat_peft.ops.reference import balance_loss_reference

TOP_K, STEPS = 2, 2
COEFFICIENT = 1e3  # a tiny random model has tiny gradients: this lifts the balance loss far above their rounding
PAIRS = [
    {"prompt": "the film is", "chosen": " great fun and very good", "rejected": " dull"},
    {"prompt": "a story", "chosen": " one", "rejected": " so awful it was bad and not very"},
] * 2


class MixedDPO(BalanceLossMixin, DPOTrainer):
    pass


class MixedGRPO(BalanceLossMixin, GRPOTrainer):
    pass


class Watch(TrainerCallback):
    """The routers' gradients as the optimizer gets them, and those of the balance loss alone, averaged over the micro-batches."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.balance: dict[str, Tensor] = {}
        self.forwards = 0

    def attach(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, GoatLinear)]
        self.routers = {layer.name: layer.goat_router["default"] for layer in layers}
        inputs: dict[str, Tensor] = {}
        for layer in layers:
            layer.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module.name, args[0]))

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if not (module.training and torch.is_grad_enabled()):
                return
            self.forwards += 1
            mask = kwargs["attention_mask"].bool()
            logits = [inputs[name][mask] @ router.T for name, router in self.routers.items()]
            loss = sum(balance_loss_reference(row, TOP_K) for row in logits) / len(logits)
            grads = torch.autograd.grad(loss, list(self.routers.values()), retain_graph=True)
            for name, grad in zip(self.routers, grads, strict=True):
                self.balance[name] = self.balance.get(name, 0) + grad / STEPS

        model.get_base_model().register_forward_hook(after, with_kwargs=True)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if not self.found:
            self.found = {name: router.grad.clone() for name, router in self.routers.items()}


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def watched(trainer_cls: type, model_dir: Path, folder: Path, coefficient: float) -> Watch:
    """One optimizer step over two micro-batches."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": STEPS, "use_cpu": True,
        "max_grad_norm": 0.0, "bf16": False, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    if issubclass(trainer_cls, GRPOTrainer):
        more: dict[str, Any] = {"reward_funcs": reward}
        args: Any = GRPOConfig(num_generations=2, max_completion_length=6, **common)
    else:
        more, args = {}, DPOConfig(**common)
    set_seed(0)
    trainer = trainer_cls(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=GoatConfig(
            r=8, num_experts=4, top_k=TOP_K, router_aux_loss_coef=coefficient, task_type="CAUSAL_LM"
        ),
        train_dataset=Dataset.from_list(
            PAIRS if trainer_cls is not MixedGRPO else [{"prompt": p["prompt"]} for p in PAIRS]
        ),
        args=args,
        **more,
    )
    watch = Watch()
    watch.attach(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    return watch


@pytest.mark.parametrize("trainer_cls", [MixedDPO, pytest.param(MixedGRPO, marks=pytest.mark.slow)])
def test_the_mixin_adds_the_balance_loss_once(trainer_cls: type, tiny_llama_dir: Path, tmp_path: Path) -> None:
    without, with_it = (
        watched(trainer_cls, tiny_llama_dir, tmp_path, coefficient) for coefficient in (0.0, COEFFICIENT)
    )
    assert with_it.forwards == STEPS
    for name, expected in with_it.balance.items():
        added = (with_it.found[name] - without.found[name]) / COEFFICIENT
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-8)


def test_without_the_mixin_a_preference_loss_moves_no_router_for_balance(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """DPO's chosen and rejected tokens pull in opposite directions: nothing in its gradient says what the balance loss should weigh."""
    without, with_it = (
        watched(DPOTrainer, tiny_llama_dir, tmp_path, coefficient) for coefficient in (0.0, COEFFICIENT)
    )
    for name, expected in without.found.items():
        torch.testing.assert_close(with_it.found[name], expected, rtol=1e-5, atol=1e-9)
