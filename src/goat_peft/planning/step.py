"""One training step run for its sizes: what lives after the forward, and the most that ever does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import AttentionInterface
from transformers.modeling_outputs import CausalLMOutput

from ..ops import use_path
from ..ops.paths import HAS_TRITON, Path
from .live import LiveMemory
from .standin import of_fake_tensors

Loss = Literal["fused", "full"]
_ATTENTION = "goat_peft_planned"
# Autocast on CUDA computes these in float32; on a CPU, where fake tensors say they are, it leaves them.
_WIDE = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    Tensor.softmax,
    F.cross_entropy,
    F.mse_loss,
}


@dataclass(frozen=True)
class Workload:
    """What one step reads and how it computes.

    Attributes:
        inputs: name of each of the model's inputs -> shape and dtype; `labels` among them.
        batch: sequences or images.
        tokens: positions that the linears see.
        length: of a sequence; None for images.
        bf16: autocast to bfloat16.
        checkpointing: activations of a block are computed again in the backward.
        loss: `fused`, as TRL's trainer computes it from the head's tiles; `full`, the model's own from all logits.
        accumulates: an optimiser step has several micro-batches, so that the gradients of one live while the next runs.
    """

    inputs: dict[str, tuple[tuple[int, ...], torch.dtype]]
    batch: int
    tokens: int
    length: int | None
    bf16: bool
    checkpointing: bool
    loss: Loss
    accumulates: bool = False


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step: `saved` lives when the forward ends, `peak` is the most; weights and optimiser are in neither, gradients are in `peak`."""

    saved: int
    peak: int


class _CudaAutocast(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _WIDE and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def planned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as a fused kernel on a GPU allocates it: the output and a number a row; kv heads are not repeated."""
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False)[0]
    return output.transpose(1, 2).contiguous(), None


def run_for_sizes(model: nn.Module, workload: Workload, path: Path = "triton") -> StepMemory:
    """Run two micro-batches of a model from `standin.skeleton`, without computing; layers learn in the first what they share. The second counts."""
    AttentionInterface.register(_ATTENTION, planned_attention)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fixed = of_fake_tensors(model, mode)
    prepare(model, workload)
    base = bare(model)
    base.config._attn_implementation = _ATTENTION
    with mode:
        inputs = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in workload.inputs.items()}
    memory = LiveMemory()
    memory.leave_out([*fixed, *inputs.values()])
    if workload.loss == "fused":
        base.forward = MethodType(_tiled_loss, base)
    saved = 0
    with mode, memory, _CudaAutocast(), use_path(path), _sizes_alone():
        for _ in range(2):
            memory.restart()
            gradients = memory.current
            with torch.autocast("cpu", dtype=torch.bfloat16) if workload.bf16 else nullcontext():
                loss = model(**inputs).loss
            saved = memory.current - gradients
            loss.backward()
            del loss
            if not workload.accumulates:
                for parameter in model.parameters():
                    parameter.grad = None
    return StepMemory(saved, memory.peak)


@contextmanager
def _sizes_alone() -> Iterator[None]:
    """The operator's GPU path without its kernels, which write into what is there already, and with products as a GPU allocates them."""
    if not HAS_TRITON:
        yield
        return
    from ..ops import fused

    before = fused.launch, fused._thin
    fused.launch, fused._thin = lambda *_, **__: None, _thin
    try:
        yield
    finally:
        fused.launch, fused._thin = before


def _thin(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32, without the casts that it takes on a CPU."""
    return left.new_empty(left.shape[0], right.shape[1], dtype=torch.float32) if out is None else out


def prepare(model: nn.Module, workload: Workload) -> None:
    """Training mode, and checkpointing if wanted; before the first step, real or not."""
    model.train()
    if workload.checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed during transformers 5
            bare(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def bare(model: nn.Module) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


_TOKENS, _VOCABULARY = 4096, 32768  # of a tile of TRL's fused head


def _tiled_loss(self: Any, *args: Any, labels: Tensor, **kwargs: Any) -> CausalLMOutput:
    """The forward that TRL's trainer gives a model, as far as memory goes: every position but the last is scored, in tiles of the head."""
    hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
    rows = hidden.reshape(-1, hidden.shape[-1])
    return CausalLMOutput(loss=-_Tiles.apply(rows, self.get_output_embeddings().weight).sum())  # type: ignore[arg-type]


class _Tiles(torch.autograd.Function):
    """Logits exist a tile at a time, in the forward and again in the backward; the input's gradient is summed in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        _tile(hidden, weight, ctx.dtype)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        sums = hidden.new_empty(hidden.shape, dtype=torch.float32)
        grad_weight = weight.new_empty(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        _tile(hidden, weight, ctx.dtype)
        return sums.to(hidden.dtype), None if grad_weight is None else grad_weight.to(weight.dtype)


def _tile(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    buffer = hidden.new_empty(min(len(hidden), _TOKENS), _VOCABULARY, dtype=dtype)
    part = weight[:_VOCABULARY].to(dtype)
    del buffer, part
