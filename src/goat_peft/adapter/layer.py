"""One adapted linear."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from goat_peft.ops import Base, Experts, Settings, SoftSettings, autocasts, path_for, routed_linears, routed_softly

from .config import GoatConfig
from .factor_cache import cached_factors
from .fingerprint import SAMPLES, check_base, weight_sample
from .grouping import Group
from .initialization import Factors, check_rank_fits, plain_factors
from .quantized import backend_of, floating_weight, is_watched, keep_trainable, takes_sum
from .routing import RoutingContext

MERGE_REASON = (
    "A GOAT adapter cannot be merged: its experts are chosen per token by a router, so no single weight equals base plus adapter. Keep the adapter "
    "on the base; unload() gives the base back bit for bit."
)


class GoatLayer(BaseTunerLayer):
    """Tensors and bookkeeping of an adapted linear of n inputs and m outputs, per adapter.

    Trained: `goat_A` (r, n), or (d, n) where experts share it; `goat_B` (m, r); `goat_router` (R, n), R the routed experts, E unless some are shared;
    `goat_threshold` (n + 1,), u and b of the learned threshold (absent with other routers). Frozen buffers, saved with the adapter: `goat_residual_A` (r, n) and
    `goat_residual_B` (m, r), the initial factors (absent without a residual); `goat_scale` (E,), the scales s_i; `goat_base_sample`, see
    `fingerprint`. Expert j owns rows `j d : (j + 1) d` of A and these columns of B. All are float32, or float64 on a float64 base.
    """

    adapter_layer_names = ("goat_A", "goat_B", "goat_router", "goat_threshold")
    other_param_names = ("goat_residual_A", "goat_residual_B", "goat_scale", "goat_base_sample", "configs")

    def __init__(self, base_layer: nn.Module, context: RoutingContext, name: str) -> None:
        self.base_layer = base_layer
        self.context = context
        self.name = name  # of the module in its model
        self.goat_A = nn.ParameterDict({})
        self.goat_B = nn.ParameterDict({})
        self.goat_router = nn.ParameterDict({})
        self.goat_threshold = nn.ParameterDict({})
        self.goat_residual_A = BufferDict({}, persistent=True)
        self.goat_residual_B = BufferDict({}, persistent=True)
        self.goat_scale = BufferDict({}, persistent=True)
        self.goat_base_sample = BufferDict({}, persistent=True)
        self.configs: dict[str, GoatConfig] = {}
        self.group: Group | None = None  # of layers that read the same input
        self.pending: set[str] = set()  # adapters whose tensors may have no values yet
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.in_features, self.out_features = linear_shape(self.get_base_layer())

    # ---- tensors -----------------------------------------------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, config: GoatConfig, inference_mode: bool = False) -> None:
        """Allocate the tensors of an adapter; `initialize` or loading gives them values.

        Raises `ValueError` if the weight is too small for the rank.
        """
        check_rank_fits(config, self.in_features, self.out_features, self.name)
        base = self.get_base_layer()
        device, base_dtype = self._get_base_layer_device_and_dtype(base)
        dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
        m, n, r, num_experts = self.out_features, self.in_features, config.r, config.num_experts
        rows = config.expert_rank if config.shared_A else r
        self.goat_A[adapter_name] = nn.Parameter(torch.zeros(rows, n, dtype=dtype, device=device))
        self.goat_B[adapter_name] = nn.Parameter(torch.zeros(m, r, dtype=dtype, device=device))
        self.goat_router[adapter_name] = nn.Parameter(torch.zeros(config.routed_experts, n, dtype=dtype, device=device))
        if config.router == "threshold":
            self.goat_threshold[adapter_name] = nn.Parameter(torch.zeros(n + 1, dtype=dtype, device=device))
        if config.uses_residual:
            self.goat_residual_A[adapter_name] = torch.zeros(r, n, dtype=dtype, device=device)
            self.goat_residual_B[adapter_name] = torch.zeros(m, r, dtype=dtype, device=device)
        self.goat_scale[adapter_name] = torch.zeros(num_experts, dtype=dtype, device=device)
        self.goat_base_sample[adapter_name] = torch.zeros(SAMPLES + 1, device=device)
        self.configs[adapter_name] = config
        self.pending.add(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def base_weight(self) -> Tensor:
        """The base weight as (m, n) in floating point; a quantised one is dequantised."""
        weight = floating_weight(self.get_base_layer(), self.quantization_backend)
        return weight.T if isinstance(self.get_base_layer(), Conv1D) else weight

    def base_sample(self) -> Tensor:
        """What `fingerprint` knows of the base weight."""
        return weight_sample(self.base_weight(), self.quantization_backend is not None)

    @torch.no_grad()
    def initialize(self, adapter_name: str, computes: bool = True) -> None:
        """Give the tensors of a pending adapter their initial values (METHOD section 1); does nothing for others, nor on the meta device.

        Without `computes` the factors that need an SVD are left out: another process has them, see `together`. Interrupted, the adapter stays pending.

        Raises `ValueError` if values arrived that were trained on another base, on a way around PEFT's loading, which checks it earlier; and for a
        base weight that is not finite.
        """
        if adapter_name not in self.pending or self.goat_A[adapter_name].is_meta:
            return
        config = self.configs[adapter_name]
        weight = self.base_weight()
        if self.goat_scale[adapter_name].any():  # a scale is never zero: transformers' own loading has set the tensors
            if config.check_base_weights:
                check_base(adapter_name, {self.name: (self.goat_base_sample[adapter_name], self.base_sample())})
            self.pending.discard(adapter_name)
            return
        target, factors = self.goat_A[adapter_name], None
        if not config.uses_residual:
            factors = plain_factors(self.out_features, self.in_features, config, target.dtype, target.device)
        elif computes:
            try:
                factors = cached_factors(weight, config, target.dtype)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
        if config.init_router == "zero":
            nn.init.zeros_(self.goat_router[adapter_name])
        else:
            nn.init.kaiming_uniform_(self.goat_router[adapter_name], a=5**0.5)  # as nn.Linear starts
        if adapter_name in self.goat_threshold:
            bound = self.in_features**-0.5  # likewise
            nn.init.uniform_(self.goat_threshold[adapter_name], -bound, bound)
        self.goat_base_sample[adapter_name].copy_(self.base_sample())
        if factors is not None:
            self._set_factors(adapter_name, factors)
        self.pending.discard(adapter_name)

    def _set_factors(self, adapter_name: str, factors: Factors) -> None:
        self.goat_A[adapter_name].copy_(factors.A)
        self.goat_B[adapter_name].copy_(factors.B)
        if self.configs[adapter_name].uses_residual:
            self.goat_residual_A[adapter_name].copy_(factors.A)
            self.goat_residual_B[adapter_name].copy_(factors.B)
        self.goat_scale[adapter_name].copy_(factors.scale)  # last: a scale that is not zero says that all is there

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the base's device; unlike PEFT's default, never to its dtype, which would round the factors."""
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        meta = torch.device("meta")
        for name in self.adapter_layer_names + self.other_param_names:
            tensors = getattr(self, name)
            if (
                isinstance(tensors, nn.ParameterDict | BufferDict)
                and adapter_name in tensors
                and tensors[adapter_name].device != meta
            ):
                tensors[adapter_name] = tensors[adapter_name].to(device)

    # ---- forward -----------------------------------------------------------------------------------------------------------------------

    def experts(self, adapter_name: str) -> Experts:
        """The tensors of an adapter, as the operator takes them."""
        modules = self._modules  # type: ignore[attr-defined]  # as self.goat_A[...], at a fifth of its time: this runs in every forward
        residual_A = modules["goat_residual_A"]._buffers
        config, A = self.configs[adapter_name], modules["goat_A"]._parameters[adapter_name]
        return Experts(
            A.repeat(config.num_experts, 1) if config.shared_A else A,
            modules["goat_B"]._parameters[adapter_name],
            modules["goat_router"]._parameters[adapter_name],
            modules["goat_scale"]._buffers[adapter_name],
            residual_A.get(adapter_name),
            modules["goat_residual_B"]._buffers.get(adapter_name),
        )

    def settings(self, adapter_name: str) -> Settings:
        """What the operator does with them now."""
        config = self.configs[adapter_name]
        dropout = config.lora_dropout if self.training else 0.0  # type: ignore[has-type,attr-defined]
        return Settings(config.active_experts or config.top_k, dropout, self.context.collects)

    def adapter_output(
        self,
        x: Tensor,
        adapter_name: str,
        token_mask: Tensor | None,
        dtype: torch.dtype | None = None,
        on_base: bool = False,
    ) -> Tensor:
        """What adapter `adapter_name` adds to the base's output for input x (..., n), or with `on_base` that output and the base's together.

        Hands the routing statistics to the context. A group's first member computes for the others too.
        """
        if adapter_name in self.pending:
            self.initialize(adapter_name)
        dtype = dtype or self._compute_dtype(x, adapter_name)
        config = self.configs[adapter_name]
        if config.routes_softly:
            return self._soft_output(x, adapter_name, token_mask, dtype)
        members: list[GoatLayer] = [self]
        if on_base and self.group is not None and self._leads_group(x, adapter_name, dtype):
            members = self.group.members  # type: ignore[union-attr]
        below = bases = None
        if on_base and self.quantization_backend is None:
            bases = [Base(layer.base_layer.weight, layer.base_layer.bias) for layer in members]  # type: ignore[arg-type]
        elif on_base:
            rows = x.reshape(-1, x.shape[-1])  # two dimensions, for which bases hand out no views
            below = [layer.base_layer(rows) for layer in members]
        in_place = below is not None and all(takes_sum(output, dtype) for output in below)
        outputs, statistics = routed_linears(
            self._cast_input_dtype(x, dtype),
            [layer.experts(adapter_name) for layer in members],
            self.settings(adapter_name),
            token_mask,
            bases,
            below if in_place else None,
        )
        if below is not None and not in_place:
            outputs = [
                own.reshape(added.shape) + added.to(own.dtype) for own, added in zip(below, outputs, strict=True)
            ]
        if statistics is not None:
            self.context.add(tuple(layer.name for layer in members), adapter_name, config.active_experts, statistics)
        if len(members) > 1:
            self.group.put(x, {layer.name: output for layer, output in zip(members[1:], outputs[1:], strict=True)})  # type: ignore[union-attr]
        return outputs[0]

    def _soft_output(self, x: Tensor, adapter_name: str, token_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`adapter_output` for the routers that the fast operator does not know."""
        config, settings = self.configs[adapter_name], self.settings(adapter_name)
        output, statistics = routed_softly(
            self._cast_input_dtype(x, dtype),
            self.experts(adapter_name),
            SoftSettings(
                config.router, config.top_k, config.top_p, config.shared_experts, settings.dropout, settings.collect
            ),
            self.goat_threshold.get(adapter_name),
            token_mask,
        )
        if statistics is not None:
            self.context.add((self.name,), adapter_name, config.active_experts, statistics)
        return output

    def _leads_group(self, x: Tensor, adapter_name: str, x_dtype: torch.dtype) -> bool:
        """Whether this layer should compute for its whole group now: it is the first, and the others would do the same with x.

        Only on the fused path, where it saves time; elsewhere every forward stays the same to the bit, the first included.
        """
        if not (
            self.context.is_open or torch._C._current_graph_task_id() != -1
        ):  # else weights might change before others ask
            return False
        if self.group.members[0] is not self or path_for(x) != "triton":  # type: ignore[union-attr]
            return False
        config = self.configs[adapter_name]
        return all(
            layer.active_adapters == self.active_adapters
            and len(layer.active_adapters) == 1
            and layer.training == self.training  # type: ignore[attr-defined,has-type,union-attr]
            and not layer.disable_adapters
            and adapter_name in layer.goat_A
            and adapter_name not in layer.pending
            and layer.configs[adapter_name] is config
            and type(layer.goat_A[adapter_name]) is nn.Parameter
            and layer._may_join_base(x_dtype)
            and (layer.quantization_backend is None) == (self.quantization_backend is None)
            for layer in self.group.members[1:]  # type: ignore[union-attr]
        )

    def _compute_dtype(self, x: Tensor, adapter_name: str) -> torch.dtype:
        """Autocast's dtype inside autocast; else x's on the fused path, which accumulates in float32, and the adapter's elsewhere, as in PEFT."""
        if autocasts(x):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype if path_for(x) == "triton" else self.goat_A[adapter_name].dtype

    def _may_join_base(self, dtype: torch.dtype) -> bool:
        """Whether the operator may hand out the base's output and the adapter's together, as nobody watches the base.

        It computes the product of a plain frozen linear in the compute dtype itself, and adds to the output of a quantised one.
        """
        base = self.base_layer
        if self.quantization_backend is not None:
            return base is self.get_base_layer() and not is_watched(base) and not torch.compiler.is_compiling()
        if type(base) is not nn.Linear:
            return False
        weight, bias = base._parameters["weight"], base._parameters["bias"]
        return (
            type(weight) is nn.Parameter
            and weight.dtype == dtype
            and not weight.requires_grad
            and (bias is None or (not bias.requires_grad and bias.dtype == dtype))
            and not is_watched(base)
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete the adapter and what is remembered of it."""
        super().delete_adapter(adapter_name)
        self.pending.discard(adapter_name)
        self.context.forget(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(MERGE_REASON)

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class Linear(nn.Module, GoatLayer):
    """GOAT on an `nn.Linear`, a `Conv1D`, or a quantised linear PEFT can dequantise."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: GoatConfig,
        context: RoutingContext,
        module: str,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        GoatLayer.__init__(self, base_layer, context, module)
        self.quantization_backend = backend_of(self.get_base_layer(), **kwargs)
        keep_trainable(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        active = [name for name in self.active_adapters if name in self.goat_A]
        if self.disable_adapters or adapter_names is not None or not active:
            result = self.base_layer(x, *args, **kwargs)
            return (
                result
                if self.disable_adapters or adapter_names is None
                else self._mixed_batch(x, result, adapter_names)
            )
        if self.group is not None and (fetched := self.group.fetch(self, x)) is not None:
            return fetched
        token_mask = self.context.token_mask(x, self.name) if self.context.collects else None
        dtype = self._compute_dtype(x, active[0])
        if not args and not kwargs and not self.configs[active[0]].routes_softly and self._may_join_base(dtype):
            self.context.saw(self, x)
            result = self.adapter_output(x, active.pop(0), token_mask, dtype, on_base=True)
        else:
            result = self.base_layer(x, *args, **kwargs)
        for adapter_name in active:
            result = result + self.adapter_output(x, adapter_name, token_mask).to(result.dtype)
        return result

    def _mixed_batch(self, x: Tensor, result: Tensor, adapter_names: list[str]) -> Tensor:
        """Each row of the batch through the adapter named for it; `__base__` is none."""
        if len(adapter_names) != len(x):
            raise ValueError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(adapter_names)} and {len(x)} respectively."
            )
        result = result.clone()
        token_mask = self.context.token_mask(x, self.name) if self.context.collects else None
        for adapter_name in sorted(set(adapter_names) & set(self.goat_A)):
            rows = [i for i, name in enumerate(adapter_names) if name == adapter_name]
            rows_mask = None if token_mask is None else token_mask.reshape(len(x), -1)[rows]
            result[rows] += self.adapter_output(x[rows], adapter_name, rows_mask).to(result.dtype)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.pending -= {name for name in self.pending if f"{prefix}goat_A.{name}" in state_dict}

    def __repr__(self) -> str:
        return "goat." + super().__repr__()


def linear_shape(base: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear module."""
    if isinstance(base, Conv1D):
        shape = getattr(base.weight, "ds_shape", base.weight.shape)
        return int(shape[0]), int(shape[1])
    return int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
