"""Quantised base linears: bitsandbytes 4-bit and 8-bit, torchao, and what else PEFT can dequantise.

A quantised base always computes itself, forward and backward, and the adapter adds to its output; so with the adapter disabled it is the base bit for bit.
Its dequantised weight is only looked at: to start the experts, and to recognise the base when an adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.utils.quantization_utils import QuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def backend_of(base: nn.Module, **kwargs: Any) -> QuantizationBackend | None:
    """PEFT's access to a quantised linear, None for a plain one; `kwargs` as of `peft.utils.quantization_utils.get_quantization_kwargs`.

    torchao's wants to know how to quantise anew, for merging; GOAT never merges, so models quantised by hand, without a config, work too. A plain linear
    is told without PEFT, which imports every quantisation library there is.
    """
    if type(base) in (nn.Linear, Conv1D) and type(base.weight) is nn.Parameter:
        return None
    return resolve_quantization_backend(base, **({"get_apply_tensor_subclass": _never} | kwargs))


def floating_weight(base: nn.Module, backend: QuantizationBackend | None) -> Tensor:
    """The weight of a linear in floating point, as the module holds it; of a quantised one a dequantised copy."""
    weight: Any = base.weight.data if backend is None else backend.get_base_weight(base)  # type: ignore[union-attr]
    return weight.detach()


def keep_trainable(module: nn.Module) -> None:
    """Keep bitsandbytes from rewriting the 4-bit weights in `module`, which it does on some CPUs (AVX-512 BF16) in the first forward without gradients.

    Rewritten, they round differently, cannot be restored exactly, and pass no gradient on to their input. Raises `ValueError` where it has happened
    already. Elsewhere this changes nothing. Adapting a linear does it; a model that is used before needs it right after loading.
    """
    for name, linear in module.named_modules():
        if not hasattr(linear, "support_avx512bf16_for_cpu"):
            continue
        if getattr(getattr(linear.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"The 4-bit weight of module '{name}' was rewritten for inference on this CPU and lost its exact values; load the base again and call "
                "goat_peft.adapter.quantized.keep_trainable(base) before its first forward."
            )
        linear.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_watched(base: nn.Module) -> bool:
    """Whether hooks or a replaced forward see what goes in and out of a linear."""
    return bool(
        base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        or "_hf_hook" in base.__dict__ or "forward" in base.__dict__
    )  # fmt: skip


def takes_sum(output: Tensor, dtype: torch.dtype) -> bool:
    """Whether an adapter that computes in `dtype` may add to a base's `output` in place: it is nobody else's and rounds no more than a new one."""
    return output.dtype == dtype and output.is_contiguous() and not output._is_view()


def _never() -> Callable[..., Any]:
    raise NotImplementedError("GOAT never writes to a base.")
