"""A recipe's model with shapes and no values: built on the meta device, then of fake tensors, so that the real code runs on it and only sizes exist."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from ..adapter import GoatLayer
from ..errors import UserError, first_line
from ..methods import Method
from ..recipes import ModelSettings, Recipe
from ..recipes.schema import METHODS
from ..tasks import bind
from ..training.loading import locate

# Bytes a weight takes, and those that a row or a block adds: nf4 has a byte of scale for 64 weights and a float32 for 256 of those.
_STORED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "torchao-int8": 1.0}
_AUTO = {
    "generation": AutoModelForCausalLM,
    "text_classification": AutoModelForSequenceClassification,
    "image_classification": AutoModelForImageClassification,
}


class QuantisedStandIn(nn.Linear):
    """A quantised linear as far as memory goes: a packed weight, and one in floating point while it multiplies, forward and backward."""

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        size = round(linear.weight.numel() * _STORED[kind]) + (0 if kind == "nf4" else 4 * linear.out_features)
        packed = torch.empty(size, dtype=torch.uint8, device=linear.weight.device)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Dequantised.apply(x, self.out_features, self.bias)


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.shape = out_features, x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, x.new_empty(ctx.shape), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ grad.new_empty(ctx.shape), None, None


def architecture(recipe: Recipe) -> Any:
    """The configuration of the recipe's model; raise `UserError` where it cannot be had."""
    settings = recipe.model
    try:
        return AutoConfig.from_pretrained(
            locate(settings), revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={settings.name}: its config.json cannot be had ({first_line(error)}); a plan needs no weights, but give a folder with that file "
            "or a hub name that can be reached"
        ) from error


def skeleton(recipe: Recipe, config: Any) -> nn.Module:
    """The recipe's model with its method applied, on the meta device; raise `UserError` for what cannot be planned."""
    method: Method = METHODS[recipe.method.name]
    with torch.device("meta"):
        model: Any = random_model(recipe, config)
        if recipe.model.quantize is not None:
            _quantise(model, recipe.model.quantize)
        try:
            model = method.build(model, recipe.method, bind(recipe.task).peft_type)
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"method={method.name}: cannot be planned ({first_line(error)}); plan goat or lora"
            ) from error
    for layer in model.modules():
        if isinstance(layer, GoatLayer):
            layer.pending.clear()
            if isinstance(layer.get_base_layer(), QuantisedStandIn):
                layer.quantization_backend = QuantizationBackend()
    return model


def of_fake_tensors(model: nn.Module, mode: FakeTensorMode) -> list[Tensor]:
    """Put fake tensors of `mode` in place of a model's, ties kept; returns those. They say they are on the CPU, where any build of torch has them."""
    fakes: dict[int, tuple[Tensor, Tensor]] = {}
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        fakes[id(tensor)] = (nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake, tensor)
                    tensors[name] = fakes[id(tensor)][0]  # type: ignore[assignment]
    return [fake for fake, _ in fakes.values()]


def random_model(recipe: Recipe, config: Any) -> PreTrainedModel:
    """The recipe's base with random weights, on the device of the context, in the dtype that it would load in."""
    auto = _AUTO.get(recipe.task.type, AutoModelForCausalLM)
    labels = bind(recipe.task).outputs
    if labels is not None:
        config.num_labels = len(labels)
    dtype = config_dtype(recipe.model, config)
    try:
        model = auto.from_config(config, dtype=dtype, trust_remote_code=recipe.model.trust_remote_code)
    except ValueError as error:
        raise UserError(
            f"model.name={recipe.model.name}: has no head for task {recipe.task.type} ({first_line(error)})"
        ) from error
    model.config.use_cache = False
    return model


def config_dtype(settings: ModelSettings, config: Any) -> torch.dtype:
    """The dtype that the base's weights load in."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _quantise(model: PreTrainedModel, kind: str) -> None:
    """Put stand-ins for all linears but the head; the others as transformers leaves them."""
    kept = [model.get_output_embeddings(), *(getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)]
    inside_kept = {id(module) for head in kept if isinstance(head, nn.Module) for module in head.modules()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and id(child) not in inside_kept:
                setattr(parent, name, QuantisedStandIn(child, kind))
    model.requires_grad_(False)
