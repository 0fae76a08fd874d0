"""Transformers' and TRL's trainers with the right loss scale, and balance loss and expert load in the log.

Loss scale. Transformers asks a model's signature whether its loss divides by `num_items_in_batch`. Sequence and image
classification heads take the keyword and ignore it, so with accumulation the gradients come out multiplied by the
number of accumulation steps. Those trainers set `model_accepts_loss_kwargs = False`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import Trainer, TrainingArguments
from trl import SFTTrainer

from ..errors import UserError
from .captured import CapturedSteps, FewLengths

# An expert with less than this part of an even share counts as idle.
IDLE = 0.1


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Keep a trainer to one device where its process sees several.

    Transformers would spread each step over all of them with `nn.DataParallel`: batches become as many times larger, and GOAT refuses it.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # what transformers' Trainer does for a model that lies on several devices
    return arguments


class BalanceLog:
    """Mix-in for a Trainer: with each training loss it logs `balance_loss`, its mean since the last log, and `load_figures`.

    Values stay on their device until a log asks for them, so that no step waits for one.
    """

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the trainer does, and remember the forward's balance loss."""
        outcome = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        aux = balance_loss(self.accelerator.unwrap_model(model)) if model.training else None  # type: ignore[attr-defined]
        if aux is not None:
            if "_balance" not in self.__dict__:
                self.__dict__["_balance"] = aux.new_zeros(2)
            # In place: of what a step does in Python, a replay of its CUDA graph repeats nothing.
            self.__dict__["_balance"].add_(torch.stack([aux, torch.ones_like(aux)]))
        return outcome

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with what the experts did beside the training loss."""
        seen = self.__dict__.get("_balance")  # the sum of balance losses since the last log, and their number
        if seen is not None and "loss" in logs and seen[1] > 0:
            total, count = seen.tolist()
            logs["balance_loss"] = total / count
            seen.zero_()
            before, now = self.__dict__.get("_routed", {}), routed(self.accelerator.unwrap_model(self.model))  # type: ignore[attr-defined]
            self.__dict__["_routed"] = now
            logs |= load_figures(since(before, now))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class OwnRates:
    """Mix-in for a Trainer: parameters whose names hold a pattern of `rates` learn at that rate, those of `rate_factors` that many times faster."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates: dict[str, float] = {}
        self.rate_factors: dict[str, float] = {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the trainer's optimizer, with groups of their own for the parameters that a pattern finds.

        Raises `UserError` for a pattern that finds no trained parameter.
        """
        made_before = self.optimizer is not None  # type: ignore[attr-defined]
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if made_before:  # DeepSpeed's set-up asks twice
            return optimizer
        fixed, factors = self._found("rates"), self._found("rate_factors")
        for group in list(optimizer.param_groups):
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                rate = fixed.get(id(parameter), group["lr"] * factors.get(id(parameter), 1.0))
                by_rate.setdefault(rate, []).append(parameter)
            settings = {key: value for key, value in group.items() if key not in ("params", "lr")}
            group["params"] = by_rate.pop(group["lr"], [])
            for rate, parameters in sorted(by_rate.items()):
                optimizer.add_param_group(settings | {"params": parameters, "lr": rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _found(self, field: str) -> dict[int, float]:
        """The value of the first pattern of `field` that each trained parameter's name holds, by the parameter's id."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
        values: dict[int, float] = {}
        for pattern, value in getattr(self, field).items():
            found = [p for name, p in trained.items() if re.search(pattern, name)]
            if not found:
                raise UserError(
                    f"training.{field}.{pattern}={value:g}: no trained parameter has such a name; names are like {', '.join(_kinds(trained))}"
                )
            for parameter in found:
                values.setdefault(id(parameter), value)
        return values


def _kinds(names: Iterable[str]) -> list[str]:
    """One name of each kind of parameter, a few of them; with the last one, as a head comes last."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0].rpartition(".")[2], name)
    return list(dict.fromkeys([*list(found.values())[:4], *list(found.values())[-1:]]))


class ClassificationTrainer(CapturedSteps, OwnRates, BalanceLog, Trainer):
    """Trainer for heads whose loss ignores `num_items_in_batch`; its steps can be captured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class _Unwatched(CapturedSteps, SFTTrainer):
    """SFTTrainer whose loss waits for nothing where steps are captured: there TRL's entropy and token accuracy are not logged."""

    most_labels: int

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the response tokens of -log p, as TRL has it: its figure is without the balance loss, whose gradient it carries."""
        if not self.captures or not model.training or self.aux_loss_enabled:  # TRL adds a sparse base's own loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        bare = self.accelerator.unwrap_model(model)
        head = bare.get_output_embeddings()
        if isinstance(head, BaseTunerLayer):  # whose experts count all tokens
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        # Of each row as many positions as the longest response has, its own first: how many a batch needs, only the device knows.
        places = (labels != -100).byte().argsort(dim=1, descending=True, stable=True)[:, : self.most_labels]
        wanted = labels.gather(1, places)
        with _reading(head, places):
            logits = model(
                **{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False
            ).logits
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum")
        own = (wanted != -100).sum()
        items = own if num_items_in_batch is None else num_items_in_batch
        loss = total / items
        aux = bare.get_aux_loss() if hasattr(bare, "get_aux_loss") else None
        return loss if aux is None else loss + (aux - aux.detach()) * own / items


@contextmanager
def _reading(head: nn.Module, places: torch.Tensor) -> Iterator[None]:
    """Let `head` read `places` (rows, n) alone of what it is given (rows, length, width)."""

    def pick(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = given[0]
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])), *given[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


class GenerationTrainer(OwnRates, BalanceLog, _Unwatched):
    """SFTTrainer with the experts' figures in its log; its steps can be captured."""

    def capture_steps(self, tell: Callable[[str], None]) -> bool:
        """As `CapturedSteps` has it; batches are padded to few lengths, as each needs a graph."""
        captures = super().capture_steps(tell)
        if captures:
            rows: Any = self.train_dataset.with_format("arrow")[:]  # type: ignore[union-attr,index]
            longest = pc.max(pc.list_value_length(rows["input_ids"])).as_py()
            self.data_collator = FewLengths(self.data_collator, longest)
            labels = pc.list_flatten(rows["labels"]).to_numpy()
            self.most_labels = int(np.bincount(pc.list_parent_indices(rows["labels"]).to_numpy()[labels != -100]).max())
        return captures


def balance_loss(model: nn.Module) -> torch.Tensor | None:
    """Return the last training forward's balance loss L_b without its coefficient, or None for a model without experts."""
    get = getattr(model, "get_balance_loss", None)
    return None if get is None else get()


def routed(model: nn.Module) -> dict[tuple[str, str], list[float]]:
    """How many tokens each expert has been given so far, by layer and adapter; empty for a model without experts."""
    get = getattr(model, "expert_usage", None)
    rows = [] if get is None else get()
    return {(row.layer, row.adapter): [row.tokens * share for share in row.share] for row in rows}


def since(before: dict[Any, list[float]], now: dict[Any, list[float]]) -> list[list[float]]:
    """Tokens per expert of each layer between two looks; layers that saw none are left out."""
    parts = [[n - b for n, b in zip(counts, before.get(key, [0.0] * len(counts)))] for key, counts in now.items()]
    return [part for part in parts if sum(part) > 0]


def load_figures(layers: list[list[float]]) -> dict[str, float]:
    """How unevenly experts were used, in three figures; none without layers.

    A layer's imbalance is its busiest expert's load over an even one: 1 when all are used alike, E when one gets all.
    `expert_imbalance` is the mean over layers, `expert_imbalance_worst` the largest, `experts_idle` the share of experts
    with less than a tenth of an even load.
    """
    if not layers:
        return {}
    relative = [[count * len(counts) / sum(counts) for count in counts] for counts in layers]
    worst = [max(row) for row in relative]
    experts = [load for row in relative for load in row]
    return {
        "expert_imbalance": sum(worst) / len(worst),
        "expert_imbalance_worst": max(worst),
        "experts_idle": sum(load < IDLE for load in experts) / len(experts),
    }
