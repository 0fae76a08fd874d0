"""Launch a Triton kernel with less work on the host than `kernel[grid](...)`.

A training step launches hundreds of small kernels, and Triton's own launch examines every argument each time. Here a kernel once compiled is kept
under what its machine code depends on, and launched directly, as Triton's tutorials do with a warmed-up kernel.
"""

from typing import Any

import torch
import triton
from torch import Tensor

_compiled: dict[tuple, Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple, constants: tuple, **options: int) -> None:
    """Run `kernel` on `grid` with its `arguments` and then its compile-time `constants`; `options` are Triton's, such as num_warps."""
    index = arguments[0].get_device()
    if index >= 0 and index != torch.cuda.current_device():  # a model spread over several devices
        with torch.cuda.device(index):
            return launch(kernel, grid, arguments, constants, **options)
    key = (kernel, constants, *options.items(), *map(_kind, arguments))
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = kernel[grid](*arguments, *constants, **options)
        if isinstance(compiled, triton.compiler.CompiledKernel):  # the interpreter has none
            _compiled[key] = compiled
        return
    compiled[grid + (1,) * (3 - len(grid))](*arguments, *constants)


def _kind(argument: Any) -> Any:
    """What machine code may depend on: a pointer's type, device and alignment to 16 bytes; whether a number is 1, or a multiple of 16."""
    if argument.__class__ is int:
        return argument == 1, argument & 15 == 0, argument > 0x7FFFFFFF
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() & 15, argument.get_device()
    return argument.__class__
