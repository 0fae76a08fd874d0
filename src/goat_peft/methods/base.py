"""What a method is: a name, its options, and the function that applies it to a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from ..errors import UserError
from ..recipes.schema import METHODS, MethodOptions

GRID = 4  # learning rates that a comparison tries by default, for every method
ADAPTER_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
FULL_RATES = (1e-5, 3e-5, 1e-4, 3e-4)

Builder = Callable[[nn.Module, Any, TaskType | None], nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: what a recipe's `method` says.
        description: one line for tables and help.
        options: pydantic model of the method's settings.
        build: takes the base model, the options and PEFT's task type; returns the model to train.
        learning_rate: used when a recipe gives none.
        learning_rates: what a comparison tries when its plan gives none; `GRID` of them for every method, so that all get the same number of trials.
        saves_adapter: False when the whole model is what a run must save.
        changes_modules: whether a saved whole model has modules that its base has not, so that loading must build before it fills.
        writes_base: whether weights of the base change, at the start or by training; not on a quantised base.
        source: the paper, by authors, venue and arXiv number; empty for a method of one's own.
    """

    name: str
    description: str
    options: type[MethodOptions]
    build: Builder
    learning_rate: float
    learning_rates: tuple[float, ...] = ADAPTER_RATES
    saves_adapter: bool = True
    changes_modules: bool = False
    writes_base: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.learning_rates) != GRID:
            raise ValueError(
                f"learning_rates={self.learning_rates}: give {GRID}, so that every method gets the same number of trials."
            )


def register(method: Method) -> Method:
    """Make a method known to recipes and to the command."""
    return METHODS.register(method)


def train_whole(model: nn.Module) -> nn.Module:
    """Make every parameter trainable, in float32 whatever dtype the weights were loaded in.

    A bfloat16 weight has 8 significant bits: AdamW's updates of about 1e-5 would round away. Computing in bfloat16 is
    the recipe's `training.bf16` (autocast). In place: tied parameters stay tied; buffers keep their dtype.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model.requires_grad_(True)


def check_targets(model: nn.Module, target_modules: str | list[str] | None) -> None:
    """Raise `UserError` when a target names no module of the model, saying which linear layers there are."""
    if target_modules is None or target_modules == "all-linear":
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(target_modules, str):
        missing = [] if any(re.fullmatch(target_modules, name) for name in names) else [target_modules]
    else:
        missing = [t for t in target_modules if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
        raise UserError(
            f"method.target_modules={','.join(missing)}: the model has no such module; "
            f"use all-linear or names among {', '.join(linear)}"
        )


def modules_to_save(model: nn.Module, given: list[str] | None, task_type: TaskType | None) -> list[str] | None:
    """Modules that train in full beside an adapter: those `given`, and a classifier's head where PEFT does not add it.

    It does for the task types that it knows; it has none for images.
    """
    if task_type is not None:
        return given
    heads = [name for name in SEQ_CLS_HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)]
    return list(dict.fromkeys([*(given or []), *heads])) or None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
