"""What the methods made of our routed experts share: the options of a recipe, and how they become a `GoatConfig`."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import TaskType, get_peft_model
from pydantic import Field, model_validator
from torch import nn

from .. import GoatConfig
from ..adapter.presets import PRESETS
from ..recipes.schema import MethodOptions
from .base import check_targets, modules_to_save


class MixtureOptions(MethodOptions):
    """`GoatConfig`'s fields, as far as recipes need them; the config itself judges their values.

    Keys that a recipe does not give take the values of its preset, and are written out with them, so that a run's recipe says what it ran with.
    """

    starting_preset: ClassVar[str | None] = None
    own: ClassVar[frozenset[str]] = frozenset(
        {
            "name", "preset", "router", "top_p", "shared_A", "shared_experts", "init_weights", "init_router", "scaling",
            "eta", "rho", "expert_scaling", "router_aux_loss_coef", "router_aux_loss_reduction",
        }
    )  # fmt: skip

    r: int = Field(8, description="total rank over all experts, a multiple of num_experts")
    num_experts: int = Field(8, description="experts E")
    top_k: int = Field(2, description="experts that each token uses")
    router: str = Field("topk", description="topk, softmax, threshold or top_p")
    top_p: float = Field(0.25, description="probability that the experts of router top_p reach together")
    shared_A: bool = Field(False, description="one A for all experts")
    shared_experts: int = Field(0, description="experts that serve every token")
    init_weights: str | bool = Field("goat", description="goat, principal, minor, random or lora")
    init_router: str = Field("kaiming", description="kaiming or zero")
    scaling: float | str = Field("paper", description="paper, lora, rslora or a number")
    eta: float = Field(1.0, description="learning rate of full fine-tuning over this run's")
    rho: float = Field(10.0, description="how much smaller than the weight's the initial factors are")
    expert_scaling: str = Field("uniform", description="uniform, or singular for GOAT-s")
    lora_alpha: float = Field(16, description="alpha of the scalings lora and rslora")
    lora_dropout: float = Field(0.0, description="dropout on the adapter's input")
    router_aux_loss_coef: float = Field(1e-3, description="coefficient of the balance loss")
    router_aux_loss_reduction: str = Field("mean", description="how the layers' balance losses combine")
    target_modules: str | list[str] = Field("all-linear", description="module names, a pattern, or all-linear")
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = PRESETS.get(data.get("preset") or cls.starting_preset or "")
        if preset is None:
            return data
        given = {key: value for key, value in data.items() if key not in ("name", "preset")}
        try:
            filled = preset(given)
        except TypeError:  # a value of a wrong type, which the fields will name
            return data
        return {key: value for key, value in filled.items() if key in cls.model_fields} | data

    @model_validator(mode="after")
    def _config_agrees(self) -> MixtureOptions:
        try:
            self.config(None)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("GoatConfig.")) from None
        return self

    def config(self, task_type: TaskType | None) -> GoatConfig:
        """Build the PEFT config; raises ValueError with the field's name for settings that cannot work."""
        return GoatConfig(task_type=task_type, **self.model_dump(exclude={"name", "preset"}))


def build(model: nn.Module, options: MixtureOptions, task_type: TaskType | None) -> nn.Module:
    """Wrap the model with routed experts."""
    check_targets(model, options.target_modules)
    config = options.config(task_type)
    config.modules_to_save = modules_to_save(model, config.modules_to_save, task_type)
    return get_peft_model(model, config)
