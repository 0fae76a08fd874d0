"""The GOAT tuner: injection, loading, the balance loss, mixed batches, statistics."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.pytorch_utils import Conv1D

from . import factor_cache
from .config import GoatConfig
from .integrity import Sealing, check_loaded_tensors, take_digest
from .layer import MERGE_REASON, GoatLayer, Linear
from .registration import PREFIX
from .routing import BalanceTerm, ExpertUsage, RoutingContext
from .together import initialize_layers, together_wanted
from .trainer import counted_labels

_PROGRESS_FROM = 16  # layers; fewer are done before a bar could be read


class GoatModel(BaseTuner):
    """A model whose chosen linears carry GOAT's routed experts.

    Called with labels in training mode, the model returns the task loss plus the weighted balance loss; in eval mode the task loss alone.
    """

    prefix: str = PREFIX
    tuner_layer_cls = GoatLayer
    target_module_mapping: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    # ---- injection ---------------------------------------------------------------------------------------------------------------------

    def _pre_injection_hook(self, model: nn.Module, config: GoatConfig, adapter_name: str) -> None:  # type: ignore[override]
        existing = next(_layers(model), None)
        if (
            existing is not None
        ):  # injected before, around PEFT's wrapper: one context and one set of hooks serve the model
            self.routing, self._handles = existing.context, []
            return
        self.routing = RoutingContext()
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]
        encoder = _encoder_of(model)
        if encoder is not None:
            self._handles.append(encoder.register_forward_hook(self._after_encoder, always_call=True))

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: Any = self.peft_config[adapter_name]
        self.routing.terms[adapter_name] = BalanceTerm(
            config.active_experts, config.router_aux_loss_coef, config.router_aux_loss_reduction
        )
        self.routing.layers = [layer.name for layer in _layers(model)]
        encoder = _encoder_of(model)
        self.routing.encoder_layers = set() if encoder is None else {layer.name for layer in _layers(encoder)}
        if config.format_version is None and not kwargs.get("low_cpu_mem_usage", False):
            _initialize(model, adapter_name, together=together_wanted())

    def _prepare_adapter_config(self, peft_config: GoatConfig, model_config: dict) -> GoatConfig:  # type: ignore[override]
        if peft_config.target_modules is None:
            if not isinstance(self.model, PreTrainedModel):
                raise ValueError(
                    "Please specify `target_modules` in `GoatConfig`: the model is not a transformers model, so 'all-linear' is not defined."
                )
            peft_config.target_modules = INCLUDE_LINEAR_LAYERS_SHORTHAND
        return peft_config

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: GoatConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, GoatLayer):
            target.update_layer(adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                target.set_requires_grad(adapter_name, False)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(  # noqa: TRY004 - as PEFT's tuners do
                f"Target module '{current_key}' is a {type(base).__name__}, which is not supported. GOAT adapts torch.nn.Linear and "
                "transformers.pytorch_utils.Conv1D; take it out of target_modules."
            )
        peft_config.fan_in_fan_out = isinstance(base, Conv1D)
        new = Linear(
            target, adapter_name, peft_config, self.routing, current_key, **get_quantization_kwargs(self.model)
        )
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a layer in place; it wraps the old one and was made on its device, so nothing has to move, as PEFT's own would (8-bit bases on meta)."""
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Adapters live in float32; with `autocast_adapter_dtype=False` trained tensors take their base's dtype, as PEFT documents it."""
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=True)
            return
        for layer in _layers(self.model):
            _, dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
            if dtype is None or not dtype.is_floating_point:
                continue
            for name in layer.adapter_layer_names:
                tensors = getattr(layer, name)
                if adapter_name in tensors:
                    tensors[adapter_name].data = tensors[adapter_name].data.to(dtype)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REASON)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        if merge:
            raise NotImplementedError(MERGE_REASON)
        for handle in self._handles:
            handle.remove()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)  # type: ignore[return-value]

    # ---- saving and loading ------------------------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict, unwanted_adapter_names: list
    ) -> dict:
        _initialize(
            model, adapter_name
        )  # an adapter read from a config alone, never used: its tensors alias the state dict's
        return Sealing(super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict
    ) -> dict:
        tensors, digest = take_digest(state_dict)
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, tensors)
        check_loaded_tensors(model, config, adapter_name, remapped, digest, GoatLayer)
        return remapped

    # ---- forward -----------------------------------------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                "GOAT does not work in nn.DataParallel, whose replicas share one router state; start one process a GPU, with torchrun or accelerate."
            )
        self.routing.begin(module.training, _named_inputs(module, args, kwargs), _encoder_of(module) is not None)

    def _after_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        self.routing.end()
        if not module.training or output is None:
            return output
        return self._deliver_balance_loss(module, _named_inputs(module, args, kwargs), output)

    def _deliver_balance_loss(self, module: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        """The output, its loss with the weighted balance loss added; or TRL's per-token log-probabilities made to carry its gradient."""
        aux = self.routing.balance_loss(weighted=True)
        if aux is None:
            return output
        if getattr(output, "log_probs", None) is not None and hasattr(output, "label_mask"):
            if self.routing.left_to_trainer:
                return output
            # SFT's loss is minus a sum of these over label tokens, divided as it sees fit: so weighted, the shares of micro-batches sum to 1.
            output.log_probs = _CarryLoss.apply(output.log_probs, aux, output.label_mask)
        else:
            share = _share_of_items(module, inputs)
            if isinstance(output, tuple) and inputs.get("labels") is not None:
                output = (output[0] + (aux * share).to(output[0].dtype), *output[1:])
            elif isinstance(output, dict) and output.get("loss") is not None:
                output["loss"] = output["loss"] + (aux * share).to(output["loss"].dtype)
            else:
                return output
        self.routing.mark_delivered()
        return output

    def _after_encoder(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.routing.leave_encoder(getattr(output, "last_hidden_state", None))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names`, one per row of a mixed batch, to the layers for one forward or generation."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = set(adapter_names) - set(self.peft_config) - {"__base__"}
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in adapter_names for _ in range(beams)]
        encoder = _encoder_of(self.model)
        in_encoder = {id(m) for m in encoder.modules()} if encoder is not None else set()
        handles = []
        for module in self.modules():
            if isinstance(module, GoatLayer | AuxiliaryTrainingWrapper):
                names = adapter_names if id(module) in in_encoder else repeated  # beams are formed after the encoder
                handles.append(
                    module.register_forward_pre_hook(partial(_pass_adapter_names, names=names), with_kwargs=True)
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- balance loss and statistics ---------------------------------------------------------------------------------------------------

    def get_aux_loss(self) -> Tensor:
        """The term to add to a custom loss: coefficient times the balance loss of the last training forward (a scalar; 0 without one)."""
        value = self.routing.balance_loss(weighted=True)
        return torch.zeros((), device=next(self.parameters()).device) if value is None else value

    def get_balance_loss(self) -> Tensor:
        """The balance loss L_b of the last training forward without its coefficient, for logging; 1 per layer at perfect balance."""
        value = self.routing.balance_loss(weighted=False)
        return torch.zeros((), device=next(self.parameters()).device) if value is None else value.detach()

    def expert_usage(self, all_processes: bool = False) -> list[ExpertUsage]:
        """How tokens were routed since the last reset, a row per layer and adapter; collected while training, elsewhere in `track_expert_usage`.

        Those of this process; with `all_processes` those of the whole launch, and every process must ask.
        """
        return self.routing.usage(all_processes)

    def reset_expert_usage(self) -> None:
        """Forget the usage so far."""
        self.routing.reset_usage()

    def track_expert_usage(self) -> AbstractContextManager[None]:
        """Context in which forwards in eval mode count too."""
        return self.routing.tracking()


class _CarryLoss(torch.autograd.Function):
    """Identity on log-probabilities whose backward gives `aux` the gradient that a loss `-sum(log_probs)` would give each counted token.

    A loss that weighs its tokens differently (DPO, GRPO) says nothing of how much `aux` should count, so there it gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, aux: Tensor, label_mask: Tensor) -> Tensor:
        ctx.save_for_backward(label_mask)
        ctx.aux_dtype = aux.dtype
        return log_probs.view_as(log_probs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (label_mask,) = ctx.saved_tensors
        least, most = (
            torch.where(label_mask.bool(), grad, torch.full_like(grad, away)).aminmax()[index]
            for index, away in enumerate((torch.inf, -torch.inf))
        )
        alike = (most <= 0) & (most - least <= 1e-3 * least.abs())
        share = torch.where(alike, -(grad * label_mask).sum(), torch.zeros_like(least))
        return grad, share.to(ctx.aux_dtype), None


def _layers(model: nn.Module) -> Iterator[GoatLayer]:
    return (module for module in model.modules() if isinstance(module, GoatLayer))


def _initialize(model: nn.Module, adapter_name: str, together: bool = False) -> None:
    """Initialise the pending layers of an adapter that have real weights, with a progress bar where there are many."""
    pending = [
        layer for layer in _layers(model) if adapter_name in layer.pending and not layer.goat_A[adapter_name].is_meta
    ]
    for _ in tqdm(
        initialize_layers(pending, adapter_name, together),
        total=len(pending),
        desc="Initialising GOAT experts",
        unit="layer",
        disable=len(pending) < _PROGRESS_FROM or None,
        leave=False,
    ):
        pass
    if pending:
        factor_cache.prune()


def _named_inputs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a call by name, those given by position too."""
    return dict(zip(inspect.signature(model.forward).parameters, args)) | kwargs if args else kwargs


def _encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder model, else None."""
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or not hasattr(model, "get_encoder"):
        return None
    return model.get_encoder()  # type: ignore[operator]


def _pass_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs | {"adapter_names": names}


def _share_of_items(model: nn.Module, inputs: dict[str, Any]) -> Tensor | float:
    """Weight of this micro-batch's balance loss: its share of the accumulated batch's label tokens where the caller normalises by those, else 1."""
    total = inputs.get("num_items_in_batch")
    if total is None or not isinstance(inputs.get("labels"), Tensor):
        return 1.0
    is_causal = LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss
    items = counted_labels(
        inputs, is_causal and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    )
    return items / torch.as_tensor(total, device=items.device)
